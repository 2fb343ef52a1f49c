#!/usr/bin/python3
"""Records histories of a group of servers under faults, and judges them.

histories.py --bin DIRECTORY --conf FILE --directory DIRECTORY --sockets DIRECTORY --logs DIRECTORY
             [--nodes N] [--seconds S] [--without KIND,...] SEEDS

SEEDS is a list such as 1,5,10-19. Each seed prints "ok" or "not ok" and,
indented, what was found; the exit status is 0 if all were ok, 2 if the group
did not recover, so that later seeds were not tried. What clients do and what goes
wrong is a function of the seed; how they meet is not. A history that was found
wrong is kept in LOGS/history_SEED.json, for checker.py.
"""
import argparse
import faulthandler
import os
import re
import signal
import sys
import traceback

import psycopg2

import nemesis
from checker import Case, check
from clients import TABLES, Client, Shared
from cluster import Cluster, NotAtRest, wait_until
from history import Answer, Final, History, Setting, now, parse_clock
from net import enter

CLIENTS = 2        # per node
WRITE_TIMEOUT = 3  # seconds
ASKED = 12         # writes of a known outcome whose status is asked for
SHOWN = 12         # findings of a seed
CONF = ["repl_ml.write_timeout = '%ds'" % WRITE_TIMEOUT, "repl_ml.heartbeat_interval = '200ms'", "wal_sender_timeout = '2s'", "wal_receiver_timeout = '2s'",
        "repl_ml.max_apply_delay = '500ms'", "fsync = on",
        # a client that gives up while the network is cut may leave a session with its locks
        "tcp_keepalives_idle = 2", "tcp_keepalives_interval = 1", "tcp_keepalives_count = 3",
        # ... which would have changes parked, that barriers do not wait for, from repl_ml.apply_lock_timeout on
        "idle_in_transaction_session_timeout = '2s'"]
REGISTERS = "SELECT key, value, __repl_clock::text FROM history_register WHERE key / 1000000000 = %d ORDER BY key"
ENTRIES = "SELECT id FROM history_entry WHERE id / 1000000000 = %d ORDER BY id"
LOSERS = "SELECT (loser_row ->> 'value')::bigint FROM repl_ml.conflict_history WHERE table_name = 'history_register' AND key[1]::bigint / 1000000000 = %d"
BROKEN = re.compile(r"TRAP:|PANIC:|terminated by signal (?!9:|3:)|invalid memory alloc")


def seeds(text):
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def registers(server, seed):
    return {key: (value, parse_clock(clock)) for key, value, clock in server.sql(REGISTERS % seed)}


class Run:
    """One seed."""

    TABLES, QUERIES = TABLES, (ENTRIES, REGISTERS)

    def __init__(self, cluster, seed, seconds):
        self.cluster, self.seed = cluster, seed
        self.history = History()
        prefix = seed * 10**9
        self.shared = Shared(self.history, prefix, cluster.servers)
        first = cluster.servers[0]
        first.sql("INSERT INTO history_register SELECT key, %s FROM unnest(%s::bigint[]) key", prefix, self.shared.keys)
        first.sql("INSERT INTO history_entry VALUES (%s)", prefix)
        cluster.wait_until_equal(REGISTERS % seed)
        cluster.wait_until_equal(ENTRIES % seed)
        self.history.add(Setting([server.name for server in cluster.servers], seed, WRITE_TIMEOUT, registers(first, seed)))
        self.nemesis = nemesis.Nemesis(cluster, self.history, seed, seconds)
        self.clients = [Client(number, server, seed, self.shared) for number, server in enumerate(cluster.servers * CLIENTS)]

    def record(self):
        for client in self.clients:
            client.start()
        try:
            self.nemesis.run()
            self.wait_for_clients()
        finally:
            self.shared.is_over.set()
            for client in self.clients:
                client.join()
        self.cluster.wait_for_streams()
        try:
            for query in self.QUERIES:
                self.cluster.wait_until_equal(query % self.seed, 30)
        except NotAtRest:
            pass  # the checker says what is not equal
        self.read_the_end()

    def read_the_end(self):
        self.ask_for_status()
        for server in self.cluster.servers:
            self.history.add(Final(server.name, registers(server, self.seed), [id for id, in server.sql(ENTRIES % self.seed)],
                                   [id for id, in server.sql(LOSERS % self.seed)]))

    def wait_for_clients(self):
        """All is mended: every client must get something done again, without a hand."""
        before = [client.successes for client in self.clients]
        wait_until(lambda: all(client.error or client.successes > count + 2 for client, count in zip(self.clients, before)),
                   lambda: "clients go on: %s" % [client.number for client, count in zip(self.clients, before) if client.successes <= count + 2], 60)

    def ask_for_status(self):
        """Of all writes whose clients do not know, and of some others; on every node, until it knows."""
        by_outcome = {outcome: [write for write in self.history.writes() if write.token and write.outcome == outcome] for outcome in ("info", "ok", "fail")}
        writes = by_outcome["info"] + by_outcome["ok"][-ASKED:] + by_outcome["fail"][-ASKED:]
        until = now() + 15
        for server in self.cluster.servers:
            for write in writes:
                began = now()

                def ask():
                    status = server.sql("SELECT repl_ml.transaction_status(%s)", write.token)[0][0]
                    return status if status in ("acknowledged", "aborted") or (status == "committed" and write.level == "one") or now() > until else None
                status = wait_until(ask, "status of %s on %s" % (write, server.name))
                self.history.add(Answer(write.id, server.name, began, now(), status, True))

    def check(self):
        return check(self.history)

    def tester_problems(self):
        return [("tester", "".join(traceback.format_exception(client.error))) for client in self.clients if client.error]

    def describe(self, took):
        counts = Case(self.history).statistics()
        return ("seed %d, %d nodes: %d writes (%d ok, %d refused or failed, %d unknown), %d reads, %d known to be acknowledged before the client was told, "
                "%d witnesses, %d answers, %.1f s; %s") % (
            self.seed, len(self.cluster.servers), counts["writes"], counts["ok"], counts["fail"], counts["info"], counts["reads"], counts["early"],
            len(self.history.witnesses), len(self.history.answers), took, self.nemesis.describe())


def log_problems(cluster, read):
    """What the servers logged since the last call that no fault explains."""
    for server in cluster.servers:
        with open(server.log, errors="replace") as log:
            log.seek(read.get(server.name, 0))
            text = log.read()
            read[server.name] = log.tell()
        for line in text.split("\n"):
            if BROKEN.search(line):
                yield "log", "%s: %s" % (server.name, line)


def left_behind(cluster):
    """Changes that are still put aside or parked when all is at rest."""
    for server in cluster.servers:
        query = "SELECT action, schema_name, table_name, change, sqlstate, message FROM repl_ml.parked_change"
        try:
            wait_until(lambda: not server.sql(query), "nothing is parked", 30)
        except NotAtRest:
            yield from (("parked", "%s: %s" % (server.name, row)) for row in server.sql(query))


def report(summary, problems):
    print("%s %s" % ("not ok" if problems else "ok", summary))
    for rule, text in problems[:SHOWN]:
        print("    %s: %s" % (rule, text))
    if len(problems) > SHOWN:
        print("    and %d more" % (len(problems) - SHOWN))
    sys.stdout.flush()


def run_seed(run, read):
    """Whether something was wrong."""
    began, cluster, seed = now(), run.cluster, run.seed
    kept = os.path.join(cluster.logs, "%shistory_%d.json" % (cluster.prefix, seed))
    try:
        run.record()
    except NotAtRest:
        run.history.save(kept)
        report(run.describe(now() - began), run.tester_problems() + [("rest", "not reached")])
        raise
    problems = run.tester_problems() + run.check() + list(left_behind(cluster)) + list(log_problems(cluster, read))
    if problems:
        run.history.save(kept)
    report(run.describe(now() - began), problems)
    return bool(problems)


def sessions(cluster):
    """Who may hold what the group waits for."""
    for server in cluster.servers:
        try:
            for row in server.sql("SELECT pid, backend_type, state, wait_event, pg_blocking_pids(pid)::text, left(query, 60) FROM pg_stat_activity"
                                  " WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()"):
                yield ("session", "%s: %s" % (server.name, row))
        except psycopg2.Error as error:
            yield ("session", "%s: %s" % (server.name, error))


def end_politely():
    """SIGTERM ends the servers as well; SIGUSR1 tells where all threads are."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    faulthandler.register(signal.SIGUSR1)


def arguments_of(parser):
    for name in ("bin", "conf", "directory", "sockets", "logs"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--prefix", default="", help="of the names of logs")
    return parser.parse_args()


def main(kind=Run):
    """Runs seeds of a kind of run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--without", default="")
    parser.add_argument("seeds")
    arguments = arguments_of(parser)
    end_politely()
    why = enter()
    if why:
        print("# no namespaces here (%s): instead of cuts in the network walsenders stand still" % why)
    for kind in arguments.without.split(",") if arguments.without else ():
        del nemesis.KINDS[kind]
    cluster = Cluster(arguments.bin, arguments.conf, arguments.directory, arguments.sockets, arguments.logs, CONF,
                      arguments.prefix, with_network=not why)
    failed, seed, read = 0, None, {}
    try:
        cluster.form_group(arguments.nodes, *kind.TABLES)
        for seed in seeds(arguments.seeds):
            failed += run_seed(kind(cluster, seed, arguments.seconds), read)
    except NotAtRest as error:
        report("seed %s: the group does not recover" % seed, [("rest", str(error)), *sessions(cluster), *log_problems(cluster, read)])
        return 2
    except Exception:
        report("the tester failed", [("tester", traceback.format_exc())])
        return 2
    finally:
        cluster.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
