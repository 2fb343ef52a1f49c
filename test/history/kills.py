#!/usr/bin/python3
"""Kills servers for good right after an acknowledgement: what was acknowledged must be on the survivors.

kills.py --bin DIRECTORY --conf FILE --directory DIRECTORY --sockets DIRECTORY --logs DIRECTORY
         [--nodes N] [--kills N] [--power-cuts] [--strong] [--pretend] SEED

Clients on all nodes write. The one that gets a certain acknowledgement, or that
sees another's write before its client has the answer, kills a node's postmaster
and all its children at once, before it does anything else. While that node is
down, every write that was acknowledged, or seen at its origin by another
session, must be on as many of the survivors as its level leaves, and on each
that lets a read pass the barrier. Then it starts again, or is dropped from the
group for a new node to take its place, and all must be equal. Each kill prints
"ok" or "not ok".

SIGKILL loses what was in the server's memory, not what the kernel had: that the
disk has it is not shown by it. --power-cuts (as root) shows that too: each
node's directory is a file system in a file, and what the file holds at the
moment of the kill is all that node has from then on; now and then the survivors
lose their power, too, and come back with what they have. With --pretend the
clients take level one for what they say they take: then acknowledged writes get
lost, and this program is to find it. With --strong the tables become strong
before the first kill.
"""
import argparse
import os
import random
import signal
import sys
import threading
import traceback

import psycopg2

from checker import required
from clients import Connection
from cluster import Cluster, NotAtRest, wait_until
from histories import arguments_of, end_politely, left_behind, log_problems, report
from history import now
from net import enter
from power import PoweredServer

WRITERS = 2         # per node
WRITE_TIMEOUT = 2   # seconds
CONF = ["repl_ml.write_timeout = '%ds'" % WRITE_TIMEOUT, "repl_ml.heartbeat_interval = '100ms'", "wal_sender_timeout = '2s'", "wal_receiver_timeout = '2s'",
        "repl_ml.max_apply_delay = '200ms'"]
TABLES = ("CREATE TABLE kill_entry (id bigint PRIMARY KEY)", "CREATE TABLE kill_register (key int PRIMARY KEY, value bigint NOT NULL)")
REGISTERS = 20
IDS = "SELECT id FROM kill_entry WHERE id / 1000000 = %d ORDER BY id"


class Write:
    def __init__(self, id, node, level):
        self.id, self.node, self.level = id, node, level
        self.outcome, self.error, self.token, self.committing, self.answered = "info", None, None, None, None

    def __repr__(self):
        return "%d (%s on %s, %s%s)" % (self.id, self.level, self.node, self.outcome, ": " + self.error if self.error else "")


class Round:
    """What is written between two rests of the group; one kill."""

    def __init__(self, tester, number):
        self.tester, self.number, self.random = tester, number, random.Random("kill %d %d" % (tester.seed, number))
        servers = [server for server in tester.cluster.servers]
        self.victims = self.random.sample(servers, self.random.randint(1, (len(servers) - 1) // 2))
        self.survivors = [server for server in servers if server not in self.victims]
        # the survivors may come back at once, with what they have on their disks
        self.down = servers if tester.power_cuts and self.random.random() < 0.5 else self.victims
        self.after = self.random.randrange(1, 40)                 # so many acknowledgements
        self.by_sight = self.random.random() < 0.3                # counts what others see of the (first) victim's writes,
        self.any_node = self.random.random() < 0.3                # or answers of any node; else its answers
        self.all_share = self.random.choice((0, 0.1, 0.5))
        # a survivor that gets nothing from the (first) victim any more, shortly before
        self.behind = self.random.choice(self.survivors) if self.random.random() < 0.5 else None
        self.members = len(servers)
        self.lock = threading.Lock()
        self.writes, self.seen = [], {}
        self.count = 0
        self.struck = threading.Event()
        self.is_over = threading.Event()
        self.delay = None

    def acknowledged(self, write):
        """In the client that has just got the answer: is it the one?"""
        if not self.by_sight and (self.any_node or write.node == self.victims[0].name):
            self.strike_if_last(write.answered)

    def sighted(self, write, seen):
        """In one that sees it; the writer may have the answer and not have looked yet."""
        if self.by_sight and write.node == self.victims[0].name and write.answered is None:
            self.strike_if_last(seen)

    def strike_if_last(self, moment):
        with self.lock:
            self.count += 1
            count = self.count
        if self.behind and count == max(1, self.after - 8):
            self.tester.hold_up(self.victims[0], self.behind)
        if count != self.after:
            return
        for server in self.down:
            self.tester.end(server)
        self.delay = self.down[0].killed - moment
        self.struck.set()


class Writer(threading.Thread):
    def __init__(self, round, server, number):
        super().__init__()
        self.round, self.server, self.number = round, server, number
        self.random = random.Random("writer %d %d %d" % (round.tester.seed, round.number, number))
        self.serial, self.connection, self.error = 0, None, None

    def run(self):
        try:
            while not self.round.is_over.is_set():
                if self.server in self.round.down and self.round.struck.is_set():
                    break
                try:
                    if self.connection is None or self.connection.closed:
                        self.connection = psycopg2.connect(self.server.dsn(), connection_factory=Connection)
                        self.connection.autocommit = True
                    self.act()
                except psycopg2.Error:
                    self.round.is_over.wait(0.01)
        except Exception as error:
            self.error = error
        finally:
            if self.connection is not None:
                self.connection.close()

    def execute(self, cursor, statement, *values):
        self.connection.deadline = now() + WRITE_TIMEOUT + 4
        cursor.execute(statement, values or None)

    def act(self):
        self.serial += 1
        level = "all" if self.random.random() < self.round.all_share else "quorum"
        write = Write(self.round.number * 1000000 + self.number * 10000 + self.serial, self.server.name, level)
        register = self.random.randrange(REGISTERS) if self.random.random() < 0.3 else None
        self.round.writes.append(write)
        with self.connection.cursor() as cursor:
            try:
                self.execute(cursor, "BEGIN; SET LOCAL repl_ml.write_consistency = '%s'" % (self.round.tester.pretended or level))
                self.execute(cursor, "INSERT INTO kill_entry VALUES (%s)", write.id)
                if register is not None:
                    self.execute(cursor, "UPDATE kill_register SET value = %s WHERE key = %s", write.id, register)
                if self.random.random() < 0.5:
                    self.execute(cursor, "SELECT repl_ml.transaction_token()")
                    write.token = cursor.fetchone()[0]
                write.committing = now()
                self.connection.linger = self.linger if self.round.by_sight else None
                self.execute(cursor, "COMMIT")
                write.answered = now()
                self.connection.linger = None
            except psycopg2.Error as error:
                write.error = "%s %s" % (error.pgcode, str(error).strip().split("\n")[0])
                if self.connection.closed or error.pgcode is None or error.diag.severity_nonlocalized != "ERROR":
                    self.connection.close()
                    return
                if error.pgcode != "40003":
                    write.outcome = "fail"
                cursor.execute("ROLLBACK")
                return
        self.round.acknowledged(write)
        write.outcome = "ok"

    def linger(self):
        """Gives others time to see what is committed."""
        self.round.struck.wait(0.02)


class Reader(Writer):
    """Another session at a node, that sees what its writers write."""

    def act(self):
        waiting = [write for write in self.round.writes[-50:] if write.node == self.server.name]
        with self.connection.cursor() as cursor:
            self.execute(cursor, "SELECT id FROM kill_entry WHERE id = ANY (%s)", [write.id for write in waiting])
            seen, found = now(), {id for id, in cursor.fetchall()}
        for write in waiting:
            # what is not acknowledged is visible once its wait has timed out
            if write.id in found and write.committing is not None and seen < write.committing + WRITE_TIMEOUT:
                if self.round.seen.setdefault(write.id, seen) == seen:
                    self.round.sighted(write, seen)
        self.round.is_over.wait(0.002)


class Tester:
    def __init__(self, cluster, seed, power_cuts, strong, pretended):
        self.cluster, self.seed, self.power_cuts, self.strong, self.pretended = cluster, seed, power_cuts, strong, pretended
        self.logs_read = {}
        self.sums = {"kills": 0, "acknowledged": 0, "seen": 0, "unknown": 0, "refused": 0, "dropped": 0, "barriers": 0}

    def prepare(self):
        first = self.cluster.servers[0]
        first.sql("INSERT INTO kill_register SELECT key, 0 FROM generate_series(0, %s) key", REGISTERS - 1)
        self.cluster.wait_until_equal("SELECT * FROM kill_register ORDER BY key")
        for table in ("kill_entry", "kill_register") if self.strong else ():
            first.sql("SELECT repl_ml.set_table_class(%s, 'strong')", table)
            for server in self.cluster.servers:
                server.sql("SELECT repl_ml.wait_for_table_class(%s)", table)

    def end(self, server):
        server.cut_power() if self.power_cuts else server.kill()

    def hold_up(self, sender, receiver):
        """What the one sends the other stays where it is."""
        for pid, in sender.sql("SELECT pid FROM pg_stat_replication WHERE application_name = %s", "repl_ml " + receiver.name):
            os.kill(pid, signal.SIGSTOP)

    def kill(self, number):
        """One round; True if all was well."""
        round = Round(self, number)
        self.write(round)
        for server in round.survivors if round.down is not round.victims else ():
            server.start()
        problems = self.look_at_survivors(round)
        # as long as a node is down, its last writes may keep others from reading
        problems += self.read_behind_barrier(round, "1 s", (psycopg2.errors.QueryCanceled, psycopg2.errors.CannotConnectNow))
        drops = self.random_drop(round)
        if drops:
            problems += self.replace(round)
        else:
            for server in round.victims:
                server.start()
        problems += self.look_at_all(round, drops)
        problems += [("tester", "".join(traceback.format_exception(thread.error))) for thread in self.threads if thread.error]
        problems += list(left_behind(self.cluster)) + list(log_problems(self.cluster, self.logs_read))
        self.count(round, drops)
        report(self.describe(round, drops), problems)
        return not problems

    def describe(self, round, drops):
        promised = self.promised(round)
        outcomes = [write.outcome for write in round.writes]
        what = [" and ".join(server.name for server in round.victims) + (" dropped and replaced" if drops else " started again")]
        what += ["the others too"] if round.down is not round.victims else []
        what += ["%s behind" % round.behind.name] if round.behind else []
        return "kill %d: %s; %d writes, %d acknowledged, %d of them only seen by others, %d unknown, %d refused; %.2f ms after the %s" % (
            round.number, ", ".join(what), len(outcomes), len(promised), sum(write.outcome != "ok" for write in promised),
            outcomes.count("info"), outcomes.count("fail"), 1000 * round.delay, "sight" if round.by_sight else "answer")

    def write(self, round):
        self.threads = [Writer(round, server, number) for number, server in enumerate(self.cluster.servers * WRITERS)]
        self.threads += [Reader(round, server, number) for number, server in enumerate(self.cluster.servers)]
        for thread in self.threads:
            thread.start()
        try:
            wait_until(round.struck.is_set, "%d acknowledgements" % round.after)
            # what was under way on the others comes to its end, and a little more
            before = len(round.writes)
            wait_until(lambda: round.down is not round.victims or len(round.writes) > before + 10, "the survivors go on")
        finally:
            round.is_over.set()
            for thread in self.threads:
                thread.join()

    def promised(self, round):
        return [write for write in round.writes if write.outcome == "ok" or write.id in round.seen]

    def look_at_survivors(self, round):
        """With the others down: has every promised write reached enough of those that are up?"""
        def missing():
            ids = [self.ids_on(server, round) for server in round.survivors]
            return [write for write in self.promised(round)
                    if sum(write.id in some for some in ids) < required(write.level, round.members) - len(round.victims)]
        try:
            # it may be there, and be applied in a moment
            wait_until(lambda: not missing(), "", patience=15)
            return []
        except NotAtRest:
            return [("lost", "%s is not on enough of %s" % (write, ", ".join(server.name for server in round.survivors))) for write in missing()]

    def ids_on(self, server, round):
        """None where strong tables cannot be read yet."""
        try:
            return {id for id, in server.sql(IDS % round.number)}
        except psycopg2.errors.CannotConnectNow:
            return set()

    def read_behind_barrier(self, round, timeout, tolerated=()):
        """A survivor that lets a read pass the barrier shows everything promised."""
        problems = []
        for server in round.survivors:
            try:
                server.sql("SELECT repl_ml.barrier(%s)", timeout)
                ids = {id for id, in server.sql(IDS % round.number)}
            except tolerated:
                continue
            self.sums["barriers"] += 1
            problems += [("stale", "%s is not on %s behind the barrier" % (write, server.name)) for write in self.promised(round) if write.id not in ids]
        return problems

    def random_drop(self, round):
        return round.random.random() < 0.12

    def replace(self, round):
        """The victims never come back; new nodes take their places, while the survivors go on."""
        for server in round.victims:
            wait_until(lambda: self.is_dropped(round.survivors[0], server), "%s is dropped" % server.name, patience=20)
            self.cluster.forget(server)
        # who has more gives it to the others
        problems = self.read_behind_barrier(round, "60 s")
        self.cluster.wait_until_equal(IDS % round.number)
        round.is_over.clear()
        writers = [Writer(round, server, 50 + number) for number, server in enumerate(round.survivors)]
        for thread in writers:
            thread.start()
        try:
            for _ in round.victims:
                self.cluster.join(self.cluster.add_server(), round.survivors[0])
        finally:
            round.is_over.set()
            for thread in writers:
                thread.join()
        self.threads += writers
        return problems

    def is_dropped(self, member, server):
        try:
            member.sql("SELECT repl_ml.drop_node(%s, true)", server.name)
            return True
        except psycopg2.errors.CannotConnectNow:
            return False

    def look_at_all(self, round, drops):
        """At rest all are equal, what failed is nowhere, and the status of what nobody knew is true."""
        ids = {id for id, in self.cluster.wait_until_equal(IDS % round.number)}
        self.cluster.wait_until_equal("SELECT key, value, __repl_clock::text FROM kill_register ORDER BY key")
        problems = [("lost", "%s is on no node" % write) for write in self.promised(round) if write.id not in ids]
        problems += [("refused", "%s is there" % write) for write in round.writes if (write.outcome == "fail" or write.committing is None) and write.id in ids]
        for write in round.writes:
            if write.outcome == "info" and write.token:
                problems += self.check_status(write, write.id in ids, drops and write.node in [server.name for server in round.victims])
        return problems

    def check_status(self, write, there, origin_is_gone):
        """Where the origin is gone for good nobody may be able to tell."""
        wanted = ("acknowledged",) if there else ("aborted",)
        until = now() + 15
        for server in self.cluster.servers:
            def ask():
                status = server.sql("SELECT repl_ml.transaction_status(%s)", write.token)[0][0]
                return status if status in wanted or now() > until else None
            status = wait_until(ask, "status of %s" % write)
            if status not in wanted and not (origin_is_gone and status == "unknown"):
                yield "status", "%s says %s of %s, which is %s" % (server.name, status, write, "there" if there else "nowhere")

    def count(self, round, drops):
        self.sums["kills"] += len(round.victims)
        self.sums["dropped"] += len(round.victims) if drops else 0
        self.sums["acknowledged"] += sum(write.outcome == "ok" for write in round.writes)
        self.sums["seen"] += sum(write.outcome != "ok" for write in self.promised(round))
        self.sums["unknown"] += sum(write.outcome == "info" for write in round.writes)
        self.sums["refused"] += sum(write.outcome == "fail" for write in round.writes)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--power-cuts", action="store_true")
    parser.add_argument("--strong", action="store_true")
    parser.add_argument("--pretend", action="store_true")
    parser.add_argument("seed", type=int)
    arguments = arguments_of(parser)
    end_politely()
    why = enter()
    if arguments.power_cuts:
        Cluster.server_class = PoweredServer
    cluster = Cluster(arguments.bin, arguments.conf, arguments.directory, arguments.sockets, arguments.logs,
                      [*CONF, *(["fsync = on"] if arguments.power_cuts else [])], arguments.prefix, with_network=not why)
    failed = 0
    try:
        cluster.form_group(arguments.nodes, *TABLES)
        tester = Tester(cluster, arguments.seed, arguments.power_cuts, arguments.strong, "one" if arguments.pretend else None)
        tester.prepare()
        for number in range(1, arguments.kills + 1):
            failed += not tester.kill(number)
        print("# %s" % ", ".join("%d %s" % (count, what) for what, count in tester.sums.items()))
    except NotAtRest as error:
        report("the group does not recover", [("rest", str(error)), *log_problems(cluster, {})])
        return 2
    except Exception:
        report("the tester failed", [("tester", traceback.format_exc())])
        return 2
    finally:
        cluster.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
