#!/usr/bin/python3
"""Mixed writes in the shapes of MLflow and Feast on all nodes at once.

mixed_writes.py SECONDS SEED CLIENTS DSN [DSN ...]

Each client works on one node. A connection error is waited out: what was
under way counts as unknown. At the end one line of JSON: how many operations
were acknowledged, refused and unknown, and the acknowledged keys of rows that
only one client ever writes (they must all be on every node afterwards).
"""
import json
import random
import sys
import threading
import time

import psycopg2
import psycopg2.extras

NAMESPACE = 40  # hot keys that all clients share


class Client(threading.Thread):
    def __init__(self, number, dsn, seed, deadline):
        super().__init__()
        self.number, self.dsn, self.deadline = number, dsn, deadline
        self.random = random.Random(seed * 1000 + number)
        self.serial = 0
        self.acked = self.refused = self.unknown = 0
        self.own_keys = []
        self.between_tries = threading.Event()  # never set
        self.connection = None

    def key(self):
        """A key no other client writes."""
        self.serial += 1
        return "c%d-%06d" % (self.number, self.serial)

    # Feast: upserts of hot feature rows, many at once
    def feast_upsert(self, cur):
        rows = [(b"entity%d" % self.random.randrange(NAMESPACE), "feature%d" % self.random.randrange(3),
                 bytes(self.random.getrandbits(8) for _ in range(self.random.choice((16, 64, 4000)))),
                 str(self.random.random())) for _ in range(self.random.randrange(1, 6))]
        rows = sorted({(r[0], r[1]): r for r in rows}.values())
        cur.executemany(
            'INSERT INTO demo_driver_hourly_stats (entity_key, feature_name, value, value_text, event_ts, created_ts)'
            ' VALUES (%s, %s, %s, %s, now(), now()) ON CONFLICT (entity_key, feature_name) DO UPDATE'
            ' SET value = EXCLUDED.value, value_text = EXCLUDED.value_text, event_ts = EXCLUDED.event_ts, created_ts = EXCLUDED.created_ts',
            rows)

    def feast_delete(self, cur):
        cur.execute('DELETE FROM demo_driver_hourly_stats WHERE entity_key = %s', (b"entity%d" % self.random.randrange(NAMESPACE),))

    # MLflow: runs of this client's own
    def log_run(self, cur):
        run = self.key()
        cur.execute("INSERT INTO runs (run_uuid, name, status, start_time, lifecycle_stage, experiment_id)"
                    " VALUES (%s, %s, 'RUNNING', 1, 'active', 0) RETURNING run_uuid", (run, "run " + run))
        cur.execute("INSERT INTO params (key, value, run_uuid) VALUES ('lr', %s, %s), ('depth', '7', %s)", (str(self.random.random()), run, run))
        cur.executemany("INSERT INTO metrics (key, value, timestamp, run_uuid, step) VALUES ('loss', %s, %s, %s, %s)",
                        [(self.random.random(), i, run, i) for i in range(5)])
        cur.execute("SELECT * FROM runs WHERE run_uuid = %s FOR UPDATE", (run,))
        cur.execute("UPDATE runs SET status = 'FINISHED', end_time = 2 WHERE run_uuid = %s", (run,))
        return [("runs", "run_uuid", run)]

    # MLflow: latest_metrics is an upsert by hand, on runs everybody shares
    def latest_metric(self, cur):
        run, step = "shared%d" % self.random.randrange(5), self.random.randrange(1000)
        cur.execute("SELECT step FROM latest_metrics WHERE key = 'loss' AND run_uuid = %s FOR UPDATE", (run,))
        if cur.fetchone():
            cur.execute("UPDATE latest_metrics SET step = %s, value = %s WHERE key = 'loss' AND run_uuid = %s",
                        (step, self.random.random(), run))
        else:
            cur.execute("INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)"
                        " VALUES ('loss', %s, 0, %s, false, %s) ON CONFLICT DO NOTHING", (self.random.random(), step, run))

    def touch_model(self, cur):
        cur.execute("UPDATE registered_models SET last_updated_time = %s, description = %s WHERE name = %s",
                    (int(time.time() * 1e6), self.key(), "model%d" % self.random.randrange(5)))

    # a model of this client's own, renamed with all that hangs on it
    def rename_model(self, cur):
        model = self.key()
        cur.execute("INSERT INTO registered_models (name, creation_time) VALUES (%s, 1)", (model,))
        cur.execute("INSERT INTO model_versions (name, version) VALUES (%s, 1), (%s, 2)", (model, model))
        cur.execute("INSERT INTO registered_model_aliases (name, alias, version) VALUES (%s, 'champion', 2)", (model,))
        cur.execute("UPDATE registered_models SET name = %s WHERE name = %s", (model + "-renamed", model))
        return [("registered_models", "name", model + "-renamed"), ("model_versions", "name", model + "-renamed")]

    def tag_and_untag(self, cur):
        model, tag = "model%d" % self.random.randrange(5), "tag%d" % self.random.randrange(10)
        if self.random.random() < 0.5:
            cur.execute("INSERT INTO registered_model_tags (key, value, name) VALUES (%s, %s, %s)"
                        " ON CONFLICT (key, name) DO UPDATE SET value = EXCLUDED.value", (tag, self.key(), model))
        else:
            cur.execute("DELETE FROM registered_model_tags WHERE key = %s AND name = %s", (tag, model))

    def rolled_back(self, cur):
        cur.execute("UPDATE registered_models SET description = 'never' WHERE name = 'model0'")
        raise psycopg2.errors.RaiseException("on purpose")

    def operation(self):
        work = self.random.choices(
            (self.feast_upsert, self.feast_delete, self.log_run, self.latest_metric, self.touch_model,
             self.rename_model, self.tag_and_untag, self.rolled_back),
            (30, 4, 15, 10, 10, 4, 10, 2))[0]
        with self.connection.cursor() as cur:
            keys = work(cur) or []
        self.connection.commit()
        self.acked += 1
        self.own_keys += keys

    def run(self):
        while time.monotonic() < self.deadline:
            try:
                if self.connection is None:
                    self.connection = psycopg2.connect(self.dsn, connect_timeout=2)
                self.operation()
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                if getattr(error, "pgcode", None) in ("40001", "40P01"):
                    self.refuse()
                    continue
                self.unknown += 1
                self.connection = None
                self.between_tries.wait(0.05)
            except psycopg2.Error:
                self.refuse()

    def refuse(self):
        """The transaction has failed; unless the connection is lost, which psycopg2 may tell by any class."""
        try:
            self.connection.rollback()
            self.refused += 1
        except psycopg2.Error:
            self.unknown += 1
            self.connection = None


def main():
    seconds, seed, clients = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dsns = sys.argv[4:]
    deadline = time.monotonic() + seconds
    threads = [Client(i, dsns[i % len(dsns)], seed, deadline) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({
        "acked": sum(t.acked for t in threads),
        "refused": sum(t.refused for t in threads),
        "unknown": sum(t.unknown for t in threads),
        "keys": [key for t in threads for key in t.own_keys],
    }))


main()
