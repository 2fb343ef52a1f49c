"""The tables of the application as its last migration but one makes them: what "alembic check" compares with a node."""
from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Enum, ForeignKey, Integer, String, UniqueConstraint, func
from sqlalchemy.orm import declarative_base

Base = declarative_base()


class Sensor(Base):
    __tablename__ = "sensor"
    name = Column(String(40), primary_key=True)
    kind = Column(Enum("hot", "cold", "wet", name="kind"), nullable=False)


class Reading(Base):
    __tablename__ = "reading"
    id = Column(Integer, primary_key=True)
    sensor = Column(String(40), ForeignKey("sensor.name"), nullable=False, index=True)
    amount = Column(BigInteger, CheckConstraint("amount >= 0", name="ck_reading_amount"), nullable=False)
    remark = Column(String(200))
    taken_at = Column(DateTime(timezone=True), server_default=func.now(), index=True)


class Label(Base):
    __tablename__ = "label"
    id = Column(Integer, primary_key=True)
    reading_id = Column(Integer, ForeignKey("reading.id", ondelete="CASCADE"), nullable=False)
    name = Column(String(40), nullable=False)
    __table_args__ = (UniqueConstraint("reading_id", "name", name="uq_label_name"),)


class Usage(Base):
    __tablename__ = "usage"
    sensor = Column(String(40), ForeignKey("sensor.name", name="fk_usage_sensor"), primary_key=True)
    day = Column(Integer, primary_key=True, server_default="0")
    times = Column(Integer, nullable=False)
