"""An application of SQLAlchemy and alembic: application/ has its tables and migrations.

Each migration is run on one node, one after the other, while the application writes on all three. The writers are of
every version at once: each transaction reads the version of the schema on its node, and writes as that has it.
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import sqlalchemy
from group import NODES, PATIENCE, TOP, again, at_once, claim, pause
from sqlalchemy import text

LAST = 11           # the migration whose tables are those of model.py
EACH = 15           # transactions of each writer between two migrations, at least
OTHER_SHAPE = ("42P01", "42703", "42P10")      # no such table, column, key
NOTHING_WRITTEN = ("57P03", "40001", "40P01")


def reading_columns(version):
    """The columns of a reading that writers of this version know."""
    return (["sensor", "amount", "note" if version < 4 else "remark"] + (["scale"] if version < 10 else [])
            + (["unit", "taken_at"] if 2 <= version < 10 else []))


class Writer(threading.Thread):
    """Writes on one node until it is told to stop; knows what it was told to be there."""

    def __init__(self, group, node):
        super().__init__(daemon=True)
        self.node, self.engine = node, sqlalchemy.create_engine(group.url(node).replace("postgresql", "postgresql+psycopg2"))
        self.serial, self.to_stop, self.acked, self.errors, self.halves = 0, threading.Event(), {}, [], []
        self.readings, self.deleted, self.labels, self.usages, self.sensors = {}, set(), set(), set(), set()
        self.missed = 0     # the version of which something was not there

    def run(self):
        while not self.to_stop.is_set():
            self.serial += 1
            version = None
            try:
                with self.engine.connect() as connection:
                    version = int(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
                    if version == self.missed:
                        self.halves.append(version)
                    self.missed = 0
                    done = self.write(connection, version)
                    connection.commit()
                done()
                self.acked[version] = self.acked.get(version, 0) + 1
            except sqlalchemy.exc.DBAPIError as error:
                state = error.orig.pgcode
                if state in OTHER_SHAPE and version:
                    self.missed = version       # the migration came in between: then the next transaction sees its version
                elif state not in NOTHING_WRITTEN:
                    self.errors.append(f"version {version}: {state} {error.orig}")
            pause(0.01)

    def write(self, connection, version):
        """Rows of each table; returns what is to be remembered when they are committed."""
        name, amount = f"{self.node}-{self.serial}", self.serial if version < 3 else 10 ** 10 + self.serial
        values = {"sensor": "shared", "amount": amount, "note": name, "remark": name, "unit": "F", "taken_at": "2026-01-01", "scale": self.serial}
        columns = reading_columns(version)
        reading = connection.execute(text(f"INSERT INTO reading ({', '.join(columns)}) VALUES ({', '.join(':' + c for c in columns)}) RETURNING id"),
                                     {c: values[c] for c in columns}).scalar_one()
        # of all rows, also those that others are just changing
        connection.execute(text(f"UPDATE reading SET {columns[2]} = {columns[2]} WHERE id = (SELECT max(id) FROM reading WHERE id < :id)"), {"id": reading})
        sensor = f"sensor {name}"
        connection.execute(text("INSERT INTO sensor VALUES (:name, :kind)"), {"name": sensor, "kind": "wet" if version >= 6 else "cold"})
        key = "sensor, day" if version >= 7 else "sensor"
        rows = [(sensor, 0)] + ([(sensor, 1)] if version >= 7 else [])
        for at, day in rows:
            connection.execute(text(f"INSERT INTO usage (sensor, times{', day' if version >= 7 else ''}) VALUES (:s, 1{', :d' if version >= 7 else ''})"
                                    f" ON CONFLICT ({key}) DO UPDATE SET times = usage.times + 1"), {"s": at, "d": day} if version >= 7 else {"s": at})
        if version >= 5:
            connection.execute(text(f"INSERT INTO {'label' if version < 12 else 'tag'} (reading_id, name) VALUES (:r, :n)"), {"r": reading, "n": name})
        if version < 11:
            connection.execute(text("INSERT INTO scratch (v) VALUES (:v)"), {"v": name})
        old = next(iter(self.readings), None) if self.serial % 4 == 0 else None
        if old is not None:
            connection.execute(text("DELETE FROM reading WHERE id = :id"), {"id": old})

        def done():
            self.readings[reading] = (amount, name)
            self.sensors.add(sensor)
            self.usages.update(rows)
            if version >= 5:
                self.labels.add((reading, name))
            if old is not None:
                del self.readings[old]
                self.deleted.add(old)
        return done

    def stop(self):
        self.to_stop.set()
        self.join()
        self.engine.dispose()


class Application:
    """Its directory, with an env.py as the book has it, and alembic's commands."""

    def __init__(self, group):
        self.group, self.directory = group, f"{group.directory}/application"
        shutil.copytree(f"{TOP}/test/clients/application", self.directory)
        # the last one is for later, as "alembic check" wants all to be done
        self.later = glob.glob(f"{self.directory}/versions/{LAST + 1}_*.py")[0]
        os.rename(self.later, f"{self.directory}/later.py")
        book = re.search(r"<!-- check-clients: alembic -->\n```python\n(.*?)```", open(f"{TOP}/doc/clients.md").read(), re.S).group(1)
        lines = "include_name = None" if os.environ.get("ABOUT") == "without" else book.split("\ncontext.configure")[0]
        with open(f"{self.directory}/env.py") as f:
            env = f.read()
        with open(f"{self.directory}/env.py", "w") as f:
            f.write(env.replace("# {book}", lines))
        for node in NODES:
            with open(f"{self.directory}/{node}.ini", "w") as f:
                f.write(f"[alembic]\nscript_location = {self.directory}\nsqlalchemy.url = {group.url(node).replace('postgresql', 'postgresql+psycopg2')}\n")

    def add_last(self):
        os.rename(f"{self.directory}/later.py", self.later)

    def alembic(self, node, *command):
        """Runs a command as a shell would; returns its status, and what it said."""
        done = subprocess.run([os.path.join(os.path.dirname(sys.executable), "alembic"), "-c", f"{self.directory}/{node}.ini", *command],
                              capture_output=True, text=True, cwd=self.directory, env=dict(os.environ, PYTHONPATH=self.directory))
        return done.returncode, done.stdout + done.stderr

    def upgrade(self, node, to):
        """Runs migrations, again where nothing was done."""
        for _ in range(10):
            status, said = self.alembic(node, "upgrade", to)
            if status == 0 or not re.search("CannotConnectNow|Deadlock|LockNotAvailable", said):
                break
            pause(0.5)
        return status, said


def alembic_client(group):
    group.begin("alembic_client")
    application = Application(group)
    group.join()
    # all three find an empty database at once; one of them makes the tables, and the others find them, or fail as on one server
    first = at_once(lambda node: application.upgrade(node, "01"))
    claim(any(status == 0 for status, _ in first.values()), "alembic: one of three that start at once makes the tables", first)
    for node in NODES:
        group.wait(node, "SELECT to_regclass('alembic_version') IS NOT NULL AND to_regclass('scratch') IS NOT NULL", f"{node} has the first tables")
        group.wait(node, "SELECT version_num = '01' FROM alembic_version", f"{node} has the first version")
    writers = [Writer(group, node) for node in NODES]
    for writer in writers:
        writer.start()
    try:
        migrate(group, application, writers)
    finally:
        for writer in writers:
            writer.stop()
    judge_application(group, application, writers)


def migrate(group, application, writers):
    """Each migration on one node, while all three write."""
    await_writers(writers, 1)
    for version in range(2, LAST + 1):
        if not migrate_to(group, application, writers, version):
            return
    for node in NODES:
        status, said = application.alembic(node, "check")
        claim(status == 0, f"alembic: check finds nothing to do on {node}", said[-500:])
    application.add_last()
    migrate_to(group, application, writers, LAST + 1)


def migrate_to(group, application, writers, version):
    """One migration; returns whether all have it."""
    node = NODES[version % len(NODES)]
    status, said = application.upgrade(node, f"{version:02d}")
    claim(status == 0, f"alembic: migration {version:02d} on {node}", said[-2000:])
    if status != 0:
        return False
    for other in NODES:
        group.wait(other, f"SELECT version_num = '{version:02d}' FROM alembic_version", f"alembic: migration {version:02d} is on {other}")
    await_writers(writers, version)
    return True


def await_writers(writers, version):
    end = time.monotonic() + PATIENCE
    while any(w.acked.get(version, 0) < EACH for w in writers):
        if time.monotonic() > end:
            claim(False, f"alembic: all nodes write as of {version:02d}", [(w.node, w.acked, w.errors[-2:]) for w in writers])
            return
        pause(0.05)


def judge_application(group, application, writers):
    group.judge("alembic")
    for writer in writers:
        claim(not writer.errors, f"alembic: no error but those to try again on {writer.node}", writer.errors[:3])
        claim(not writer.halves, f"alembic: no version without its tables on {writer.node}", writer.halves)
    label = "tag" if group.one("n1", "SELECT to_regclass('tag') IS NOT NULL") else "label"
    for node in NODES:
        readings = {i: (amount, remark) for i, amount, remark in group.sql(node, "SELECT id, amount, remark FROM reading")}
        labels, usages = set(group.sql(node, f"SELECT reading_id, name FROM {label}")), set(group.sql(node, "SELECT sensor, day FROM usage"))
        sensors = {name for (name,) in group.sql(node, "SELECT name FROM sensor")}
        for writer in writers:
            lost = [(i, seen, readings.get(i)) for i, seen in writer.readings.items() if readings.get(i) != seen]
            claim(not lost, f"alembic: {len(writer.readings)} readings of {writer.node} are on {node}", lost[:3])
            back = writer.deleted & set(readings)
            claim(not back, f"alembic: what {writer.node} deleted is gone on {node}", back)
            lost = [*(writer.usages - usages), *(writer.sensors - sensors), *({x for x in writer.labels if x[0] in writer.readings} - labels)]
            claim(not lost, f"alembic: all other rows of {writer.node} are on {node}", lost[:3])
    dumps = {node: group.dump_schema(node) for node in NODES}
    claim(len(set(dumps.values())) == 1, "alembic: the schema is the same on all nodes", {n: len(d) for n, d in dumps.items()})
    for relation, status, detail in again(lambda: group.sql("n1", "SELECT relation::text, status, detail FROM repl_ml.verify_all() WHERE status <> 'consistent'")):
        claim(False, f"alembic: {relation} is consistent", (status, detail))
    shapes = group.sql("n1", "SELECT to_jsonb(s)::text FROM repl_ml.shape_differences s")
    claim(not shapes, "alembic: all tables have one shape", shapes[:3])
    for node in NODES:
        wrong = group.sql(node, "SELECT check_name, detail FROM repl_ml.health WHERE status = 'error'")
        claim(not wrong, f"alembic: health of {node}", wrong)
