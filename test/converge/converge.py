#!/usr/bin/python3
"""Random writes on all nodes of a group, disturbed; then all nodes must agree on what the writes make.

converge.py [--transactions N] [--seconds S] [--plant] [--verify] [--dumps DIRECTORY]
            [--without KIND,...] [--tables NAME,...] SEEDS NODE...

SEEDS is a list such as 1,5,10-19. A NODE is name|connection string|data
directory|log file of a running member; all members must be given. Each seed
prints "ok" or "not ok" and, indented, what was found; the exit status is 0 if
all were ok, 2 if the group did not come to rest, so that later seeds were not
tried. What the clients do and what disturbs them is a function of the seed,
when it happens is not. --plant then breaks nodes on purpose, and what the
checks do not find is "not ok". --dumps writes what is known about the rows that
were found wrong into DIRECTORY/seed_N.txt. After each seed repl_ml.verify_all must say what
the tester's own comparison does; with --verify it also runs all the time, and may
call nothing a difference (verify.py). --without leaves out kinds of disturbance,
--tables all tables (tables.py) but those named.
"""
import argparse
import sys
import time
import traceback

import plant
import tally
import verify
from check import Case, check, dump, workers_are_well
from clients import Client, Progress, Relay
from disturb import Disturbance
from group import Group, Node, NotAtRest
from tables import CHOSEN

SHOWN = 12  # findings of a seed


def seeds(text):
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def write(group, seed, transactions, without):
    """Runs the clients of a seed, disturbed, until all is applied everywhere."""
    total = 2 * len(group.nodes) * transactions
    progress = Progress(total)
    disturbance = Disturbance(group, seed, total, without)
    clients = [Client(number, node, seed, transactions, progress) for number, node in enumerate(group.nodes * 2)]
    relay = Relay(group.nodes, seed, progress)
    adders = [tally.TallyClient(number, node, seed, transactions // 2) for number, node in enumerate(group.nodes)]
    for thread in [*clients, relay, *adders]:
        thread.start()
    try:
        disturbance.run(progress)
    finally:
        for thread in [*clients, relay, *adders]:
            thread.join()
    group.rest()
    return clients, relay, adders, disturbance


def run_seed(group, seed, transactions, without, watched):
    """One line of what was done, what was found wrong, and the case."""
    start = time.monotonic()
    began = group.nodes[0].sql("SELECT clock_timestamp()")[0][0]
    watcher = verify.Watcher(group, seed)
    if watched:
        watcher.start()
    try:
        clients, relay, adders, disturbance = write(group, seed, transactions, without)
    finally:
        if watched:
            watcher.stop()
    writers = [writer for client in [*clients, relay] for writer in client.writers]
    tally_writers = [writer for adder in adders for writer in adder.writers]
    lost = sum(writer.settle() for writer in [*writers, *tally_writers])
    additions = [addition for writer in tally_writers for addition in writer.committed]
    versions = [version for writer in writers for version in writer.committed]
    case = Case(group, versions, clients[0].prefix, {(relay.table.name, relay.key)}, disturbance.copied(), additions)
    problems = [("tester", "".join(traceback.format_exception(client.error))) for client in [*clients, relay, *adders] if client.error]
    problems += check(case) + workers_are_well(group, began, disturbance.copied()) + [("verify", alarm) for alarm in watcher.alarms]
    problems += [("verify", text) for text in verify.at_rest(case, problems)]
    summary = "seed %d, %d nodes: %d versions of %d rows, %d refused, %d uncertain, %d in order, %d additions, %d conflicts, %d evictions, %.1f s; %s" % (
        seed, len(group.nodes), len(versions), len(case.history.rows), sum(writer.refused for writer in writers), lost, relay.handed_on, len(additions),
        len({row.id for snapshot in case.snapshots for row in snapshot.log}), len(case.history.evicted),
        time.monotonic() - start, disturbance.describe() + ("; " + watcher.describe() if watched else ""))
    return summary, problems, case


def write_dump(path, summary, problems, case):
    """Everything about the rows that the findings name."""
    rows = [row for row in sorted(case.history.rows) if any("%s %s" % row in text for _, text in problems)]
    with open(path, "w") as file:
        print(summary, *("%s: %s" % problem for problem in problems), sep="\n", file=file)
        for row in rows:
            print(*dump(case, *row), sep="\n", file=file)


def report(summary, problems):
    print("%s %s" % ("not ok" if problems else "ok", summary))
    for rule, text in problems[:SHOWN]:
        print("    %s: %s" % (rule, text))
    if len(problems) > SHOWN:
        print("    and %d more" % (len(problems) - SHOWN))
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--transactions", type=int, default=30)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--plant", action="store_true")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--dumps")
    parser.add_argument("--without", default="")
    parser.add_argument("--tables")
    parser.add_argument("seeds")
    parser.add_argument("nodes", nargs="+")
    arguments = parser.parse_args()
    group = Group([Node(*node.split("|")) for node in arguments.nodes])
    if arguments.tables:
        CHOSEN[:] = [table for table in CHOSEN if table.name in arguments.tables.split(",")]
    start = time.monotonic()
    failed = 0
    try:
        group.prepare()
        for seed in seeds(arguments.seeds):
            if arguments.seconds is not None and time.monotonic() - start > arguments.seconds:
                print("# time is up before seed %d" % seed)
                break
            summary, problems, case = run_seed(group, seed, arguments.transactions, arguments.without.split(","), arguments.verify)
            report(summary, problems)
            failed += bool(problems)
            if problems and arguments.dumps:
                write_dump("%s/seed_%d.txt" % (arguments.dumps, seed), summary, problems, case)
        if arguments.plant:
            failed += plant.run(case)
    except NotAtRest as error:
        report("seed %d: the group does not come to rest" % seed, [("rest", str(error))])
        return 2
    except Exception:
        report("the tester failed", [("tester", traceback.format_exc())])
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
