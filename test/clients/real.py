#!/usr/bin/env python3
"""MLflow, Feast, Optuna, LangGraph and an application with alembic, unmodified, on three nodes: each has a database, and a group, of its own.

real.py BIN DIRECTORY CLIENT...      servers of BIN in DIRECTORY; run by "run", which installs what it imports

Each client's statements of doc/clients.md are run first; with ABOUT=without only add_all_tables() is, and what they are for
is lost. Schema changes are run by all members. Afterwards all nodes have the same rows, nothing is parked, and what was acknowledged is there.
"""
import os
import subprocess
import sys
import time
import urllib.request

from group import NODES, PATIENCE, Group, again, at_once, claim, failures, free_port, pause
from alembic_application import alembic_client


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

def langgraph_client(group):
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.postgres import PostgresSaver
    group.begin("langgraph_client")
    with PostgresSaver.from_conn_string(group.url("n1")) as saver:
        saver.setup()
    group.statements("langgraph")
    group.join()

    def work(node):
        put = []
        with PostgresSaver.from_conn_string(group.url(node)) as saver:
            for thread in range(5):
                config = {"configurable": {"thread_id": f"{node}-{thread}", "checkpoint_ns": ""}}
                for step in range(4):
                    checkpoint = empty_checkpoint()
                    checkpoint["channel_values"] = {"messages": [f"{node} {step}"]}
                    checkpoint["channel_versions"] = {"messages": step + 1}
                    config = saver.put(config, checkpoint, {"source": "loop", "step": step}, {"messages": step + 1})
                    saver.put_writes(config, [("messages", step)], f"task {step}")
                put.append((thread, config["configurable"]["checkpoint_id"]))
        return put

    done = at_once(work)
    group.judge("langgraph")
    for node in NODES:
        with PostgresSaver.from_conn_string(group.url(node)) as saver:
            lacking = [(writer, thread) for writer in NODES for thread, last in done[writer]
                       if saver.get_tuple({"configurable": {"thread_id": f"{writer}-{thread}", "checkpoint_ns": ""}}).checkpoint["id"] != last]
        claim(not lacking, f"langgraph: the last checkpoint of each thread is on {node}", lacking)


# ---- MLflow ----

def mlflow_client(group):
    group.begin("mlflow_client")
    environment = dict(os.environ, MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true", HOME=group.directory)
    mlflow = os.path.join(os.path.dirname(sys.executable), "mlflow")
    # as a server does that finds an empty database
    make = "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore; SqlAlchemyStore(sys.argv[1], '/tmp')"
    with open(f"{group.directory}/upgrade.log", "w") as log:
        subprocess.run([sys.executable, "-c", make, group.url("n1")], check=True, env=environment, cwd=group.directory, stdout=log, stderr=log)
    group.statements("mlflow")
    group.join()
    ports = {node: free_port() for node in NODES}
    servers = [subprocess.Popen([mlflow, "server", "--backend-store-uri", group.url(node), "--default-artifact-root", f"{group.directory}/artifacts", "--host", "127.0.0.1", "--port", str(ports[node]), "--workers", "1"],
                                env=environment, cwd=group.directory, stdout=open(f"{group.directory}/mlflow-{node}.log", "w"), stderr=subprocess.STDOUT, start_new_session=True) for node in NODES]
    try:
        for node in NODES:
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{ports[node]}/health", timeout=5)
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    pause(0.5)
        mlflow_work(group, ports)
    finally:
        for server in servers:
            os.killpg(server.pid, 15)
            server.wait()


def mlflow_work(group, ports):
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    clients = {node: MlflowClient(f"http://127.0.0.1:{ports[node]}", registry_uri=f"http://127.0.0.1:{ports[node]}") for node in NODES}
    again(lambda: clients["n1"].create_registered_model("shared"))

    def work(node):
        client, made, versions = clients[node], [], []
        for e in range(4):
            experiment = again(lambda: client.create_experiment(f"{node} {e}"))
            run = client.create_run(experiment).info.run_id
            for step in range(3):
                client.log_batch(run, metrics=[Metric(f"m{i}", step + i / 10, 1000 + step, step) for i in range(10)],
                                 params=[Param(f"p{step}", node)], tags=[RunTag("node", node)])
            client.set_terminated(run)
            made.append((experiment, run))
        for _ in range(6):
            versions.append(again(lambda: client.create_model_version("shared", f"s3://bucket/{node}", run)).version)
        again(lambda: client.set_registered_model_alias("shared", f"of_{node}", versions[-1]))
        return made, versions

    done = at_once(work)
    group.judge("mlflow")
    experiments = [e for made, _ in done.values() for e, _ in made]
    versions = [int(v) for _, given in done.values() for v in given]
    claim(len(set(experiments)) == 12, "mlflow: every experiment has an id of its own", experiments)
    claim(len(set(versions)) == 18, "mlflow: every model version has a number of its own", sorted(versions))
    for node in NODES:
        seen = {int(v.version) for v in clients[node].search_model_versions("name = 'shared'")}
        claim(set(versions) <= seen, f"mlflow: every acknowledged version is on {node}", sorted(set(versions) - seen))
        runs = clients[node].search_runs(experiments, max_results=100)
        claim(len(runs) == 12 and all(len(r.data.metrics) == 10 and len(r.data.params) == 3 and r.data.metrics["m3"] == 2.3 for r in runs), f"mlflow: every run is whole on {node}", len(runs))


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


CLIENTS = {"alembic": alembic_client, "feast": feast_client, "mlflow": mlflow_client, "optuna": optuna_client, "langgraph": langgraph_client}

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
