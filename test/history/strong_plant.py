#!/usr/bin/python3
"""Shows that strong_history.py finds what it is for, without a server: as plant.py does for checker.py.

One server is simulated, whose transactions come one after the other; then one
thing in its history is made wrong, for each rule.
"""
import random
import sys
import tempfile

from strong_history import Deed, StrongFinal, StrongHistory, check

NODES = ("n1", "n2", "n3")
KEYS = (1, 2)


class Simulation:
    """Transactions that take effect at one moment between being asked for and being answered; clients of all nodes overlap."""

    def __init__(self, seed, count=300):
        self.random = random.Random("strong simulation %d" % seed)
        self.history = StrongHistory()
        self.lists = {key: [] for key in KEYS}
        self.versions = {key: [0, 0] for key in KEYS}
        self.numbers = {key: [] for key in KEYS}
        for id in range(1, count):
            self.step(id)
        for node in NODES:
            self.history.add(StrongFinal(node, {key: list(ids) for key, ids in self.lists.items()}, {key: list(of) for key, of in self.versions.items()},
                                         {key: [list(row) for row in rows] for key, rows in self.numbers.items()}, []))

    def step(self, id):
        kind = self.random.choice(("append", "append", "swap", "set", "number", "share", "read"))
        deed = Deed(id, kind, id % 6, NODES[id % 3], invoked=id - self.random.random() * 3, returned=id + self.random.random() * 3, outcome="ok", committing=id)
        if kind not in ("share", "read") and self.random.random() < 0.1:
            deed.outcome, deed.error = self.random.choice((("fail", "57P03 nobody has the lease"), ("info", "connection lost")))
        if deed.outcome == "ok" or deed.outcome == "info" and self.random.random() < 0.5:
            getattr(self, kind if kind not in ("swap", "read") else {"swap": "set", "read": "share"}[kind])(deed)
        self.history.add(deed)

    def append(self, deed):
        deed.appended = self.random.sample(KEYS, self.random.choice((1, 2)))
        deed.lists = {key: list(self.lists[key]) for key in deed.appended}
        for key in deed.appended:
            self.lists[key].append(deed.id)

    def set(self, deed):
        key = self.random.choice(KEYS)
        deed.versions = {key: list(self.versions[key])}
        self.versions[key] = [self.versions[key][0] + 1, deed.id]
        deed.wrote = [key, self.versions[key][0]]

    def number(self, deed):
        key = self.random.choice(KEYS)
        deed.number = [key, len(self.numbers[key]) + 1]
        self.numbers[key].append([deed.number[1], deed.id])

    def share(self, deed):
        deed.lists = {key: list(ids) for key, ids in self.lists.items()}
        deed.versions = {key: list(of) for key, of in self.versions.items()}


def void_that_was_seen(history):
    """Makes a version's number that of a void transaction, too, which somebody who failed saw where it was written, before the valid one was."""
    valid = [deed for deed in history.deeds if deed.outcome == "ok" and deed.wrote][5]
    seen = list(valid.versions[valid.wrote[0]])
    void = Deed(10001, "set", 0, "n1", invoked=valid.invoked - 0.4, returned=valid.invoked - 0.3, outcome="info", error="40003", committing=valid.invoked - 0.35,
                versions={valid.wrote[0]: seen}, wrote=list(valid.wrote))
    reader = Deed(10002, "set", 0, "n1", invoked=valid.invoked - 0.2, returned=valid.invoked - 0.1, outcome="fail", error="57P03 nobody has the lease",
                  versions={valid.wrote[0]: [valid.wrote[1], void.id]})
    history.deeds[:0] = [void, reader]


class Plants:
    """rule__what: makes a history wrong in one way that the rule has to find."""

    def __init__(self, history):
        self.history, self.deeds, self.finals = history, history.deeds, history.finals

    def last(self, kind, outcome="ok"):
        return [deed for deed in self.deeds if deed.kind == kind and deed.outcome == outcome][-3]

    def everywhere(self, change):
        for final in self.finals:
            change(final)

    def valid__nothing_succeeded(self):
        for deed in self.deeds:
            if deed.kind == "set":
                deed.outcome, deed.error = "fail", "57P03"

    def ends_equal__a_row_is_missing(self):
        self.finals[1].lists[1].pop()

    def ends_equal__a_conflict(self):
        self.finals[2].conflicts = ["one"]

    def nothing_twice__in_a_list(self):
        self.everywhere(lambda final: final.lists[1].append(final.lists[1][-1]))

    def nothing_twice__number_for_two(self):
        one, other = [deed for deed in self.deeds if deed.outcome == "ok" and deed.number and deed.number[0] == 1][-2:]
        other.number[1] = one.number[1]

    def nothing_twice__number_left_out(self):
        self.everywhere(lambda final: final.numbers[1].pop(2))

    def nothing_twice__version_for_two(self):
        one, other = [deed for deed in self.deeds if deed.outcome == "ok" and deed.wrote and deed.wrote[0] == 1][-2:]
        other.wrote[1] = one.wrote[1]

    def acknowledged_is_there__append_lost(self):
        deed = self.last("append")
        for key in deed.appended:
            self.everywhere(lambda final: final.lists[key].remove(deed.id))

    def acknowledged_is_there__number_of_another(self):
        deed = self.last("number")
        self.everywhere(lambda final: final.numbers[deed.number[0]][deed.number[1] - 1].__setitem__(1, 1))

    def acknowledged_is_there__set_lost(self):
        deed = [deed for deed in self.deeds if deed.outcome == "ok" and deed.wrote and deed.wrote[0] == 1][-1]
        self.everywhere(lambda final: final.versions.__setitem__(1, [deed.wrote[1] - 1, 0]))

    def refused_is_nowhere__refused_append(self):
        deed = next(deed for deed in self.deeds if deed.outcome == "fail")
        self.everywhere(lambda final: final.lists[1].append(deed.id))

    def refused_is_nowhere__from_nowhere(self):
        self.everywhere(lambda final: final.lists[1].append(999999))

    def refused_is_nowhere__half(self):
        deed = [deed for deed in self.deeds if deed.outcome == "ok" and deed.appended and len(deed.appended) == 2][-1]
        deed.outcome, deed.error = "info", "connection lost"
        self.everywhere(lambda final: final.lists[1].remove(deed.id))

    def seen_stays__element_gone(self):
        self.last("share").lists[1].append(888888)

    def seen_stays__void_at_its_origin(self):
        void_that_was_seen(self.history)
        self.deeds[1].kind, self.deeds[1].outcome = "share", "ok"

    def seen_stays__also_by_who_failed(self):
        deed = self.last("append")
        deed.outcome, deed.error = "fail", "57P03"
        deed.lists = {key: ids[:-1] + [777777] for key, ids in deed.lists.items()}

    def errors_are_known__serialization(self):
        next(deed for deed in self.deeds if deed.outcome == "fail").error = "40001 could not serialize"

    def errors_are_known__unique_violation_of_an_update(self):
        next(deed for deed in self.deeds if deed.outcome == "fail" and deed.kind == "append").error = "23505 duplicate key"

    def has_an_order__stale_read(self):
        read = self.last("read")
        read.lists = {key: ids[:-12] for key, ids in read.lists.items()}

    def has_an_order__stale_locked_read(self):
        read = self.last("share")
        read.versions = {1: [0, 0]}

    def has_an_order__lost_update_of_a_list(self):
        deed = self.last("append")
        deed.lists = {key: ids[:-8] for key, ids in deed.lists.items()}

    def has_an_order__two_lists_in_two_orders(self):
        both = [deed for deed in self.deeds if deed.outcome == "ok" and deed.appended and len(deed.appended) == 2]
        one, other = both[-2:]
        for deed in self.deeds:
            deed.invoked, deed.returned = 0.0, 1000.0 + deed.id

        def swap(final):
            ids = final.lists[1]
            i, j = ids.index(one.id), ids.index(other.id)
            ids[i], ids[j] = ids[j], ids[i]
        self.everywhere(swap)
        one.lists[1], other.lists[1] = [id if id != one.id else other.id for id in other.lists[1]], one.lists[1]


def reloaded(history):
    """What comes out of the file it is kept in."""
    with tempfile.NamedTemporaryFile() as file:
        history.save(file.name)
        return StrongHistory.load(file.name)


def main():
    complaints = [(seed, complaint) for seed in range(20) for complaint in check(reloaded(Simulation(seed).history))]
    print("%s 20 histories of strong tables that keep their promises" % ("not ok" if complaints else "ok"))
    for complaint in complaints[:5]:
        print("    %s" % (complaint,))
    missed = bool(complaints)
    history = Simulation(7).history
    void_that_was_seen(history)
    complaints = check(reloaded(history))
    print("%s a void version that only who failed has seen at its origin" % ("not ok" if complaints else "ok"))
    for complaint in complaints[:5]:
        print("    %s" % (complaint,))
    missed += bool(complaints)
    for name in [name for name in dir(Plants) if "__" in name.strip("_")]:
        history = Simulation(7).history
        getattr(Plants(history), name)()
        rule, _, what = name.partition("__")
        ok = any(complaint == rule for complaint, _ in check(reloaded(history)))
        print("%s planted in strong tables: %s: %s" % ("ok" if ok else "not ok", rule, what.replace("_", " ")))
        missed += not ok
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
