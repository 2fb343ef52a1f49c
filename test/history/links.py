#!/usr/bin/python3
"""Cuts one node off, without a word, for some time, and measures how long after the network is back what was written meanwhile comes
across: within two seconds, with settings as they are by default. Options and output are those of histories.py; a seed is a time.

Seen failing: worker.c, run_and_recover without answered = false, and without await_network (seed 5: 4.3 s)."""
import argparse
import random
import sys
import time

from cluster import Cluster, waiting
from histories import arguments_of, end_politely, seeds
from net import enter

WITHIN = 2.0
GIVE_UP = 60.0


def lack(servers, key):
    """Which of the servers have not all rows of that key."""
    return [server for server in servers if server.sql("SELECT count(*) FROM t WHERE key = %s", key)[0][0] < len(servers)]


def cut_off(cluster, seed):
    """Returns for how long the last server was cut off, and how long it took afterwards."""
    last, others = cluster.servers[-1], cluster.servers[:-1]
    seconds = random.Random(seed).choice((3, 10, 40)) * random.Random(-seed).uniform(0.3, 1)
    for other in others:
        cluster.network.cut(last.number, other.number)
        cluster.network.cut(other.number, last.number)
    for server in cluster.servers:
        server.sql("INSERT INTO t VALUES (%s, %s)", seed, server.name)
    waiting.wait(seconds)
    for other in others:
        cluster.network.mend(last.number, other.number)
        cluster.network.mend(other.number, last.number)
    began = time.monotonic()
    while lack(cluster.servers, seed) and time.monotonic() - began < GIVE_UP:
        waiting.wait(0.01)
    return seconds, time.monotonic() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("seeds")
    arguments = arguments_of(parser)
    end_politely()
    why = enter()
    if why:
        print("not ok: no namespaces here (%s)" % why)
        return 2
    cluster = Cluster(arguments.bin, arguments.conf, arguments.directory, arguments.sockets, arguments.logs, (), arguments.prefix)
    failed = 0
    try:
        cluster.form_group(arguments.nodes, "CREATE TABLE t (key int, name text, PRIMARY KEY (key, name))")
        for seed in seeds(arguments.seeds):
            cluster.wait_for_streams()
            seconds, took = cut_off(cluster, seed)
            failed += took > WITHIN
            print("%s seed %d, %d nodes: one was cut off for %.1f s, and all had come %.2f s afterwards"
                  % ("ok" if took <= WITHIN else "not ok", seed, arguments.nodes, seconds, took), flush=True)
    finally:
        cluster.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
