"""MLflow: a server of it on each node. One that is new, one that is upgraded from 2.x while clients write, and its rubbish."""
import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import warnings

from group import NODES, PATIENCE, again, at_once, claim, free_port, pause

OLD = os.path.join(os.path.dirname(sys.executable), "..", "old", "bin", "python")      # of the environment with MLflow 2.x
# what a server does that finds an empty database
MAKE_TABLES = "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore; SqlAlchemyStore(sys.argv[1], '/tmp')"


QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_LOGGING_LEVEL": "ERROR",
         "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}


def environment(group, python):
    return dict(os.environ, **QUIET, HOME=group.directory, PATH=f"{os.path.dirname(python)}:{os.environ['PATH']}")


def run(group, log, python, *arguments):
    """Runs a command of MLflow's, or Python; what it says is in a log. Returns its status."""
    with open(f"{group.directory}/{log}.log", "a") as out:
        return subprocess.run([python, *arguments], env=environment(group, python), cwd=group.directory, stdout=out, stderr=out).returncode


@contextlib.contextmanager
def servers(group, nodes, python, name, urls=None):
    """A server of MLflow on each node, or by other urls; gives their ports when all answer."""
    ports = {node: free_port() for node in nodes}
    started = [subprocess.Popen([python, "-m", "mlflow", "server", "--backend-store-uri", urls[node] if urls else group.url(node), "--default-artifact-root", f"{group.directory}/artifacts",
                                 "--host", "127.0.0.1", "--port", str(ports[node]), "--workers", "1"],
                                env=environment(group, python), cwd=group.directory,
                                stdout=open(f"{group.directory}/{name}-{node}.log", "w"), stderr=subprocess.STDOUT, start_new_session=True) for node in nodes]
    try:
        for node in nodes:
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{ports[node]}/health", timeout=5)
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    pause(0.5)
        yield ports
    finally:
        for server in started:
            os.killpg(server.pid, 9)       # they would take half a minute
            server.wait()


def connect(ports, node):
    os.environ.update(QUIET)
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    return MlflowClient(f"http://127.0.0.1:{ports[node]}", registry_uri=f"http://127.0.0.1:{ports[node]}")


# ---- one that is new ----

def mlflow_client(group):
    group.begin("mlflow_client")
    claim(run(group, "mlflow-tables", sys.executable, "-c", MAKE_TABLES, group.url("n1")) == 0, "mlflow: makes its tables")
    group.statements("mlflow")
    group.join()
    with servers(group, NODES, sys.executable, "mlflow") as ports:
        mlflow_work(group, ports)


def mlflow_work(group, ports):
    os.environ.update(QUIET)
    from mlflow.entities import Metric, Param, RunTag
    clients = {node: connect(ports, node) for node in NODES}
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
    one_of_a_name(group, clients)
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


def one_of_a_name(group, clients):
    """All nodes make experiments of the same names at once: one of them does, and the others are told so."""
    from mlflow.exceptions import MlflowException

    def make(node, name):
        try:
            return clients[node].create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return None

    given = at_once(lambda node: [again(lambda: make(node, f"common {e}")) for e in range(6)])
    for e in range(6):
        ids = [given[node][e] for node in NODES if given[node][e] is not None]
        claim(len(ids) == 1, f"mlflow: one client has made the experiment common {e}", given)
        for node in NODES:
            group.wait(node, f"SELECT EXISTS (SELECT FROM experiments WHERE name = 'common {e}')", f"mlflow: common {e} is on {node}")
            seen = clients[node].get_experiment_by_name(f"common {e}").experiment_id
            claim([seen] == ids[:1], f"mlflow: on {node} common {e} has the id that its client was told", (seen, ids))


# ---- an upgrade ----

class Trainer(threading.Thread):
    """Trains and registers models by an old server until it is told to stop; knows what was acknowledged."""

    def __init__(self, ports, node):
        super().__init__(daemon=True)
        self.client, self.node = connect(ports, node), node
        self.to_stop, self.runs, self.models, self.errors = threading.Event(), [], {}, []

    def run(self):
        experiment = again(lambda: self.client.create_experiment(f"of {self.node}"))
        while not self.to_stop.is_set():
            try:
                self.train(experiment, len(self.runs) + len(self.errors))
            except Exception as error:  # noqa: BLE001, whatever a client may see
                self.errors.append(f"after {len(self.runs)} runs: {error!r}"[:500])
                pause(0.2)

    def train(self, experiment, number):
        from mlflow.entities import Metric, Param, RunTag
        run = again(lambda: self.client.create_run(experiment).info.run_id)
        for step in range(2):
            again(lambda: self.client.log_batch(run, metrics=[Metric(f"m{i}", step + i / 10, 1000 + step, step) for i in range(5)],
                                                params=[Param(f"p{step}", self.node)], tags=[RunTag("node", self.node)]))
        again(lambda: self.client.set_terminated(run))
        self.runs.append(run)
        name = f"{self.node} {number % 3}"
        if name not in self.models:
            again(lambda: self.client.create_registered_model(name))
        version = again(lambda: self.client.create_model_version(name, f"s3://bucket/{run}", run)).version
        again(lambda: self.client.transition_model_version_stage(name, version, "Production", archive_existing_versions=True))
        again(lambda: self.client.set_registered_model_alias(name, "champion", version))
        self.models[name] = int(version)

    def stop(self):
        self.to_stop.set()
        self.join()


def mlflow_upgrade_client(group):
    group.begin("mlflow_upgrade_client")
    group.join()
    claim(run(group, "mlflow-old", OLD, "-c", MAKE_TABLES, group.url("n1")) == 0, "mlflow 2: makes its tables in a group of three")
    version = group.one("n1", "SELECT version_num FROM alembic_version")
    for node in NODES[1:]:
        group.wait(node, f"SELECT to_regclass('alembic_version') IS NOT NULL AND EXISTS (SELECT FROM experiments)", f"mlflow 2: the tables are on {node}")
    with servers(group, NODES[1:], OLD, "mlflow-old") as ports:
        trainers = [Trainer(ports, node) for node in NODES[1:]]
        for trainer in trainers:
            trainer.start()
        await_runs(trainers, 5)
        claim(run(group, "mlflow-upgrade", sys.executable, "-m", "mlflow", "db", "upgrade", group.url("n1")) == 0, "mlflow: db upgrade on n1 while others write")
        await_runs(trainers, 5)
        for trainer in trainers:
            trainer.stop()
    new = group.one("n1", "SELECT version_num FROM alembic_version")
    claim(new != version, "mlflow: another version", new)
    group.judge("mlflow upgrade")
    with servers(group, NODES, sys.executable, "mlflow-new") as ports:
        judge_upgrade(group, ports, trainers)
        collect_rubbish(group, ports, trainers[0])
    group.judge("mlflow gc")


def await_runs(trainers, more):
    """Each trainer has trained so many more."""
    before, end = {t.node: len(t.runs) for t in trainers}, time.monotonic() + PATIENCE
    while any(len(t.runs) < before[t.node] + more for t in trainers):
        if time.monotonic() > end:
            claim(False, "mlflow: all go on", [(t.node, len(t.runs), t.errors[-2:]) for t in trainers])
            return
        pause(0.1)


def judge_upgrade(group, ports, trainers):
    """What was acknowledged is there, by servers of the new version on all nodes."""
    for trainer in trainers:
        claim(not trainer.errors, f"mlflow: no error but those to try again on {trainer.node}", (len(trainer.errors), trainer.errors[:2]))
    for node in NODES:
        client = connect(ports, node)
        for trainer in trainers:
            experiment = client.get_experiment_by_name(f"of {trainer.node}").experiment_id
            found = {r.info.run_id: r for r in client.search_runs([experiment], max_results=5000)}
            broken = [r for r in trainer.runs if r not in found or found[r].info.status != "FINISHED" or len(found[r].data.metrics) != 5
                      or found[r].data.metrics["m3"] != 1.3 or len(found[r].data.params) != 2]
            claim(not broken, f"mlflow: {len(trainer.runs)} runs of {trainer.node} are whole on {node}", broken[:3])
            for name, version in trainer.models.items():
                champion = int(client.get_model_version_by_alias(name, "champion").version)
                production = [int(v.version) for v in client.search_model_versions(f"name = '{name}'") if v.current_stage == "Production"]
                claim(champion >= version and production == [champion], f"mlflow: model {name} has a champion, alone in production, on {node}", (version, champion, production))


def collect_rubbish(group, ports, trainer):
    """Deleted on one node, collected on another: gone on all."""
    client, gone = connect(ports, "n1"), trainer.runs[:3]
    for one in gone:
        client.delete_run(one)
    group.wait("n3", f"SELECT count(*) = 3 FROM runs WHERE lifecycle_stage = 'deleted'", "mlflow: deletions are on n3")
    claim(run(group, "mlflow-gc", sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", group.url("n3"), "--tracking-uri", f"http://127.0.0.1:{ports['n3']}") == 0, "mlflow: gc on n3")
    for node in NODES:
        group.wait(node, "SELECT NOT EXISTS (SELECT FROM runs WHERE lifecycle_stage = 'deleted')", f"mlflow: what gc has removed is gone on {node}")
        left = [t for t in ("metrics", "latest_metrics", "params", "tags") if group.one(node, f"SELECT EXISTS (SELECT FROM {t} WHERE run_uuid = ANY ('{{{','.join(gone)}}}'))")]
        claim(not left, f"mlflow: with all of theirs on {node}", left)


# ---- what a batch costs ----

def mlflow_cost(group, rounds=200):
    """Measures, does not judge: log_batch by a server on plain PostgreSQL, on a node at level one and at quorum, one after the other."""
    from mlflow.entities import Metric, Param, RunTag
    group.begin("mlflow_cost")
    plain = group.plain_server()
    for node in NODES:
        group.sql(node, "ALTER SYSTEM SET fsync = on")
        group.sql(node, "SELECT pg_reload_conf()")
    urls = {"plain": plain, "one": group.url("n1"), "quorum": group.url("n1") + "?options=-c%20repl_ml.write_consistency%3Dquorum"}
    for name in ("plain", "one"):
        run(group, "mlflow-tables", sys.executable, "-c", MAKE_TABLES, urls[name])
    group.statements("mlflow")
    group.join()
    seconds = {name: [] for name in urls}
    with servers(group, urls, sys.executable, "mlflow", urls) as ports:
        clients = {name: connect(ports, name) for name in urls}
        experiments = {name: again(lambda: clients[name].create_experiment(name)) for name in urls}
        for turn in range(-20, rounds):
            if turn % 50 == 0 or turn == -20:
                runs = {name: clients[name].create_run(experiments[name]).info.run_id for name in urls}
            for name in (*list(urls)[turn % 3:], *list(urls)[:turn % 3]):
                metrics = [Metric(f"m{i}", turn + i / 10, 1000 + turn, turn + 20) for i in range(20)]
                begun = time.monotonic()
                clients[name].log_batch(runs[name], metrics=metrics, params=[Param(f"p{turn} {i}", "x") for i in range(5)], tags=[RunTag("turn", str(turn))])
                if turn >= 0:
                    seconds[name].append(time.monotonic() - begun)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    for name in urls:
        print(f"log_batch of 20 metrics, 5 params and a tag, {name}: median of {rounds} {1000 * median[name]:.1f} ms, {median[name] / median['plain']:.2f} of plain")
