"""What alembic runs for each of its commands; {book} is where the lines of doc/clients.md are put."""
from alembic import context
from model import Base
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

# {book}

with create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=NullPool).connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, include_name=include_name)
    with context.begin_transaction():
        context.run_migrations()
