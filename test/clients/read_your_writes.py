#!/usr/bin/python3
"""Threads that write on one node and read on another, with a token between: read_your_writes.py THREADS ROUNDS MODE DSN...

MODE is token (current_vector, wait_for_vector), barrier (a quorum write, then repl_ml.barrier) or setting (a quorum
write, then a transaction with repl_ml.read_consistency = barrier). Prints, as JSON, how many reads there were and
how many did not show the write; an error of a client ends it with exit status 1.
"""
import json
import random
import sys
import threading

import psycopg2

threads, rounds, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dsns = sys.argv[4:]
counts = {"reads": 0, "stale": 0}
lock = threading.Lock()
errors = []


def connect(dsn):
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    return connection


def read(cursor, token, key):
    if mode == "token":
        cursor.execute("SELECT repl_ml.wait_for_vector(%s, '60 s')", (token,))
    elif mode == "barrier":
        cursor.execute("SELECT repl_ml.barrier('60 s')")
    cursor.execute("SELECT v FROM reading WHERE id = %s", (key,))
    row = cursor.fetchone()
    return row and row[0]


def run(number):
    choose = random.Random(number)
    cursors = [connect(dsn).cursor() for dsn in dsns]
    for cursor in cursors:
        cursor.execute("SET repl_ml.write_timeout = '60s'")
        cursor.execute("SET repl_ml.read_timeout = '60s'")
        if mode != "token":
            cursor.execute("SET repl_ml.write_consistency = quorum")
        if mode == "setting":
            cursor.execute("SET repl_ml.read_consistency = barrier")
    for value in range(1, rounds + 1):
        writer, reader = choose.sample(cursors, 2)
        writer.execute("INSERT INTO reading VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v", (number, value))
        token = None
        if mode == "token":
            writer.execute("SELECT repl_ml.current_vector()")
            token = writer.fetchone()[0]
        found = read(reader, token, number)
        with lock:
            counts["reads"] += 1
            counts["stale"] += found != value


def guarded(number):
    try:
        run(number)
    except Exception as error:
        errors.append("thread %d: %s" % (number, error))


workers = [threading.Thread(target=guarded, args=(number,)) for number in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(json.dumps(counts))
print(*errors, sep="\n", file=sys.stderr)
sys.exit(1 if errors else 0)
