#!/usr/bin/python3
"""Records histories of strong tables under faults, and judges them: options and output are those of histories.py."""
import sys
import threading
import types

import nemesis
from histories import CLIENTS, Run, main
from strong_clients import LISTS, NAMES, REGISTERS, TABLES, StrongClient
from strong_history import StrongFinal, StrongHistory, check

OF_A_NODE = {"lists": "SELECT key, entries FROM strong_list WHERE key / 1000000000 = %d ORDER BY key",
             "versions": "SELECT key, ARRAY[version, value] FROM strong_register WHERE key / 1000000000 = %d ORDER BY key",
             "numbers": "SELECT name, number, id FROM strong_number WHERE name / 1000000000 = %d ORDER BY name, number"}
CONFLICTS = "SELECT to_jsonb(c)::text FROM repl_ml.conflict_history c WHERE table_name LIKE 'strong\\_%%' AND key[1]::bigint / 1000000000 = %d"


class StrongRun(Run):
    """One seed."""

    TABLES, QUERIES = TABLES, tuple(OF_A_NODE.values())

    def __init__(self, cluster, seed, seconds):
        self.cluster, self.seed = cluster, seed
        self.history = StrongHistory()
        self.shared = types.SimpleNamespace(history=self.history, seed=seed, prefix=seed * 10**9, is_over=threading.Event(), servers=cluster.servers)
        first = cluster.servers[0]
        for table, count in (("strong_list", LISTS), ("strong_register", REGISTERS)):
            first.sql("INSERT INTO %s SELECT %d + i FROM generate_series(0, %d) i" % (table, self.shared.prefix, count - 1))
        for query in self.QUERIES:
            cluster.wait_until_equal(query % seed)
        self.nemesis = nemesis.Nemesis(cluster, self.history, seed, seconds)
        self.clients = [StrongClient(number, server, seed, self.shared) for number, server in enumerate(cluster.servers * CLIENTS)]

    def read_the_end(self):
        for server in self.cluster.servers:
            lists, versions, numbers = (server.sql(query % self.seed) for query in self.QUERIES)
            self.history.add(StrongFinal(server.name, dict(lists), dict(versions),
                                         {self.shared.prefix + name: [list(row[1:]) for row in numbers if row[0] == self.shared.prefix + name] for name in range(NAMES)},
                                         [row[0] for row in server.sql(CONFLICTS % self.seed)]))

    def check(self):
        return check(self.history)

    def describe(self, took):
        counts = {}
        for deed in self.history.deeds:
            counts.setdefault(deed.outcome, []).append(deed)
        taken = sum(server.sql("SELECT taken FROM repl_ml.stat_strong")[0][0] for server in self.cluster.servers if server.is_up())
        return "seed %d, %d nodes: %d transactions (%s), the lease taken %d times since servers started, %.1f s; %s" % (
            self.seed, len(self.cluster.servers), len(self.history.deeds), ", ".join("%d %s" % (len(of), outcome) for outcome, of in sorted(counts.items())),
            taken, took, self.nemesis.describe())


if __name__ == "__main__":
    sys.exit(main(StrongRun))
