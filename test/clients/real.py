#!/usr/bin/env python3
"""MLflow, Feast, Optuna, LangGraph and an application with alembic, unmodified, on three nodes: each has a database, and a group, of its own.

real.py BIN DIRECTORY CLIENT...      servers of BIN in DIRECTORY; run by "run", which installs what it imports

Each client's statements of doc/clients.md are run first; with ABOUT=without only add_all_tables() is, and what they are for
is lost. Schema changes are run by all members. Afterwards all nodes have the same rows, nothing is parked, and what was acknowledged is there.
"""
import sys
import threading
import time

from alembic_application import alembic_client
from group import NODES, Group, again, at_once, claim, failures, pause
from mlflow_clients import mlflow_client, mlflow_cost, mlflow_upgrade_client


# ---- Optuna ----

def optuna_client(group):
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    group.begin("optuna_client")
    optuna.create_study(study_name="s", storage=group.url("n1").replace("postgresql", "postgresql+psycopg2"), direction="minimize")
    group.statements("optuna")
    group.join()
    each = 8

    def work(node):
        study = again(lambda: optuna.load_study(study_name="s", storage=group.url(node).replace("postgresql", "postgresql+psycopg2")))
        for _ in range(each):
            def one():
                trial = study.ask()
                x = trial.suggest_float("x", -1, 1)
                trial.report(x * x, 1)
                study.tell(trial, x * x)
            again(one)
        return each

    at_once(work)
    group.judge("optuna")
    for node in NODES:
        seen = group.sql(node, "SELECT count(*), count(DISTINCT number), min(number), max(number) FROM trials WHERE state = 'COMPLETE'")[0]
        claim(seen[0] == seen[1] == 3 * each, f"optuna: {3 * each} trials with numbers of their own on {node}", seen)


# ---- LangGraph ----

def put_checkpoints(saver, name, threads, steps, writes=True):
    """Some threads, some steps each; returns the last checkpoint of each thread."""
    from langgraph.checkpoint.base import empty_checkpoint
    put = {}
    for thread in range(threads):
        config = {"configurable": {"thread_id": f"{name}-{thread}", "checkpoint_ns": ""}}
        for step in range(steps):
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = {"messages": [f"{name} {step}"]}
            checkpoint["channel_versions"] = {"messages": step + 1}
            config = saver.put(config, checkpoint, {"source": "loop", "step": step}, {"messages": step + 1})
            if writes:
                saver.put_writes(config, [("messages", step)], f"task {step}")
        put[f"{name}-{thread}"] = config["configurable"]["checkpoint_id"]
    return put


def judge_checkpoints(group, put, what):
    """The last checkpoint of each thread can be had from each node."""
    from langgraph.checkpoint.postgres import PostgresSaver
    for node in NODES:
        with PostgresSaver.from_conn_string(group.url(node)) as saver:
            seen = {thread: saver.get_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": ""}}) for thread in put}
        lacking = [thread for thread, last in put.items() if seen[thread] is None or seen[thread].checkpoint["id"] != last]
        claim(not lacking, f"langgraph: the last checkpoint of each of {len(put)} threads {what} is on {node}", lacking)


def langgraph_client(group):
    from langgraph.checkpoint.postgres import PostgresSaver
    group.begin("langgraph_client")
    with PostgresSaver.from_conn_string(group.url("n1")) as saver:
        saver.setup()
    group.statements("langgraph")
    group.join()

    def work(node):
        with PostgresSaver.from_conn_string(group.url(node)) as saver:
            return put_checkpoints(saver, node, 5, 4)

    done = at_once(work)
    group.judge("langgraph")
    judge_checkpoints(group, {t: c for put in done.values() for t, c in put.items()}, "of a new database")


def langgraph_upgrade_client(group):
    """setup() of a database as the first versions made it, on one node, while agents work on the others."""
    from langgraph.checkpoint.postgres import PostgresSaver

    class FirstSaver(PostgresSaver):
        MIGRATIONS = PostgresSaver.MIGRATIONS[:4]

    group.begin("langgraph_upgrade_client")
    group.join()
    with FirstSaver.from_conn_string(group.url("n1")) as saver:
        saver.setup()
    for node in NODES:
        group.wait(node, "SELECT max(v) = 3 FROM checkpoint_migrations", f"langgraph: the first tables are on {node}")
    upgraded = threading.Event()

    def work(node):
        with PostgresSaver.from_conn_string(group.url(node)) as saver:
            if node == "n1":
                pause(0.5)
                saver.setup()
                upgraded.set()
                return {}
            put, rounds = {}, 0
            while not upgraded.is_set() or rounds < 5:
                put.update(again(lambda: put_checkpoints(saver, f"{node}-{rounds}", 2, 3, writes=False)))
                rounds += 1
            return put

    done = at_once(work)
    for node in NODES:
        group.wait(node, f"SELECT max(v) = {len(PostgresSaver.MIGRATIONS) - 1} FROM checkpoint_migrations", f"langgraph: setup() is on {node}")
        columns = [c for (c,) in group.sql(node, "SELECT attname FROM pg_attribute WHERE attrelid = 'checkpoint_writes'::regclass AND attnum > 0 AND NOT attisdropped")]
        claim("task_path" in columns, f"langgraph: the tables of that version are on {node}", columns)
        with PostgresSaver.from_conn_string(group.url(node)) as saver:
            saver.setup()       # finds nothing to do
            done[node].update(put_checkpoints(saver, f"{node} after", 2, 3))
    claim(len({group.dump_schema(node) for node in NODES}) == 1, "langgraph: the schema is the same on all nodes", NODES)
    group.statements("langgraph_upgrade", NODES)        # as after the setup() of large tables
    group.judge("langgraph upgrade")
    judge_checkpoints(group, {t: c for put in done.values() for t, c in put.items()}, "of an old database")


# ---- Feast ----

def feast_store(group, node):
    from feast import FeatureStore, RepoConfig
    return FeatureStore(config=RepoConfig(
        project="demo", provider="local", entity_key_serialization_version=3,
        registry={"registry_type": "sql", "path": group.url(node).replace("postgresql", "postgresql+psycopg2"), "cache_ttl_seconds": 1},
        online_store={"type": "postgres", "host": "127.0.0.1", "port": group.ports[node], "database": group.name, "db_schema": "public", "user": "postgres", "password": "none", "sslmode": "disable"},
        offline_store={"type": "file"}))


def feast_client(group):
    import datetime
    import pandas
    from feast import Entity, FeatureView, Field, FileSource
    from feast.types import Float32
    group.begin("feast_client")
    driver = Entity(name="driver", join_keys=["driver_id"])
    source = FileSource(path=f"{group.directory}/none.parquet", timestamp_field="event_timestamp")
    begun = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    pandas.DataFrame({"driver_id": [1], "rate": [0.5], "event_timestamp": [begun]}).to_parquet(f"{group.directory}/none.parquet")
    view = FeatureView(name="stats", entities=[driver], schema=[Field(name="rate", dtype=Float32)], source=source, ttl=None)
    feast_store(group, "n1").apply([driver, view])
    group.statements("feast")
    group.join()

    def write(node, at, value, drivers):
        feast_store(group, node).write_to_online_store("stats", pandas.DataFrame(
            {"driver_id": list(drivers), "rate": [value] * len(drivers), "event_timestamp": [begun + datetime.timedelta(seconds=at)] * len(drivers)}))

    def work(node):
        place = NODES.index(node)
        write(node, 10, float(place), range(100 * place, 100 * place + 50))
        # each of them overwrites what it has seen of the others, also with an older event: Feast does not look
        for _ in range(5):
            write(node, {"n1": 20, "n2": 30, "n3": 25}[node], {"n1": 1.0, "n2": 2.0, "n3": 3.0}[node], range(1000, 1020))

    at_once(work)
    group.judge("feast")
    seen = set()
    for node in NODES:
        store = feast_store(group, node)
        claim([v.name for v in store.list_feature_views()] == ["stats"], f"feast: the registry is on {node}")
        seen.add(str(store.get_online_features(["stats:rate"], [{"driver_id": d} for d in range(1000, 1020)]).to_dict()["rate"]))
        rates = store.get_online_features(["stats:rate"], [{"driver_id": d} for d in (0, 49, 100, 249)]).to_dict()["rate"]
        claim(rates == [0.0, 0.0, 1.0, 2.0], f"feast: what each node wrote is on {node}", rates)
    claim(len(seen) == 1, "feast: one feature has one value everywhere", seen)


def feast_views_client(group):
    """A new view from n2, its rows from n1, its end; and that of all."""
    import datetime
    import pandas
    from feast import Entity, FeatureView, Field, FileSource
    from feast.types import Float32, String
    group.begin("feast_views_client")
    group.join()
    driver = Entity(name="driver", join_keys=["driver_id"])
    begun = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    path = f"{group.directory}/drivers.parquet"
    pandas.DataFrame({"driver_id": list(range(30)), "rate": [float(i) for i in range(30)], "name": [f"driver {i}" for i in range(30)],
                      "event_timestamp": [begun] * 30}).to_parquet(path)
    source = FileSource(path=path, timestamp_field="event_timestamp")

    def view(name, field):
        return FeatureView(name=name, entities=[driver], schema=[field], source=source, ttl=datetime.timedelta(days=36500))

    def table_is(there, name):
        for node in NODES:
            group.wait(node, f"SELECT (to_regclass('demo_{name}') IS NOT NULL) = {there}", f"feast: the table of {name} is {'there' if there else 'gone'} on {node}")

    feast_store(group, "n1").apply([driver, view("rates", Field(name="rate", dtype=Float32))])
    table_is(True, "rates")
    feast_store(group, "n2").apply([driver, view("names", Field(name="name", dtype=String))])
    table_is(True, "names")
    group.wait("n1", "SELECT count(*) = 2 FROM feature_views", "feast: the registry of n1 has both views")
    feast_store(group, "n1").materialize(begun - datetime.timedelta(days=1), begun + datetime.timedelta(days=1))
    group.judge("feast views")
    for node in NODES:
        got = feast_store(group, node).get_online_features(["rates:rate", "names:name"], [{"driver_id": 7}, {"driver_id": 29}]).to_dict()
        claim((got["rate"], got["name"]) == ([7.0, 29.0], ["driver 7", "driver 29"]), f"feast: what n1 has materialized is on {node}", got)
    claim(group.one("n3", "SELECT count(*) FROM repl_ml.tables WHERE relation IN ('demo_rates'::regclass, 'demo_names'::regclass) AND state = 'replicated'") == 2, "feast: the tables of views are replicated")

    store = feast_store(group, "n3")
    store.apply(objects=[], objects_to_delete=[store.get_feature_view("rates")], partial=False)
    table_is(False, "rates")
    group.wait("n2", "SELECT count(*) = 1 FROM feature_views", "feast: the registry of n2 has one view")
    # one of the same name is another
    feast_store(group, "n2").apply([driver, view("rates", Field(name="rate", dtype=Float32))])
    table_is(True, "rates")
    group.wait("n1", "SELECT count(*) = 2 FROM feature_views", "feast: the registry of n1 has both views again")
    group.judge("feast views")
    for node in NODES:
        claim(group.one(node, "SELECT count(*) FROM demo_rates") == 0, f"feast: a view that was removed begins empty on {node}")
    feast_store(group, "n1").teardown()
    table_is(False, "rates")
    table_is(False, "names")
    group.judge("feast views")


CLIENTS = {"mlflow_cost": mlflow_cost, "alembic": alembic_client, "feast": feast_client, "mlflow": mlflow_client, "mlflow_upgrade": mlflow_upgrade_client, "optuna": optuna_client, "langgraph": langgraph_client, "langgraph_upgrade": langgraph_upgrade_client, "feast_views": feast_views_client}

if __name__ == "__main__":
    group = Group(sys.argv[1], sys.argv[2])
    try:
        for client in sys.argv[3:]:
            before = time.monotonic()
            CLIENTS[client](group)
            print(f"== {client}: {time.monotonic() - before:.0f} s", flush=True)
    finally:
        group.stop()
    print(f"{len(failures)} failed")
    sys.exit(1 if failures else 0)
