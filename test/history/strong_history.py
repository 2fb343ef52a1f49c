"""What clients of strong tables did, and the judge of it.

A list (clients append to it), a register (compare and set, or read and then
set) and numbers (one above the highest) each show the order in which they were
written: every element, version and number has one that comes before it. So what
each transaction read and wrote says of which it came after, and the order of all
can be looked for as a cycle: none means that the transactions have an order
that agrees with what all of them saw, and with the clock on the wall (strict
serializability; of a read without locks, key by key: linearizability).

strong_history.py FILE... judges kept histories again.
"""
import dataclasses
import sys

from history import KINDS, History

# what one server says, too, and what only a group does: too few members, or the answer to a commit that nobody knows
EXPECTED_ERRORS = {"23505": ("number",), "40P01": None, "57P03": None, "57014": None}


@dataclasses.dataclass
class Deed:
    """One transaction of a client on strong tables.

    kind is "append" (to one or two lists), "swap" (compare and set), "set" (read
    under a lock, then set), "number", "share" (reads all under locks), or "read"
    (behind a barrier, no locks). outcome and error are as in Operation.
    """
    id: int
    kind: str
    client: int
    node: str
    invoked: float = None
    returned: float = None
    outcome: str = "info"
    error: str = None
    committing: float = None
    lists: dict = None         # key: what was in it when the transaction had the row, its own id excluded
    appended: list = None      # keys
    versions: dict = None      # key: [version, value], as it was before
    wrote: list = None         # [key, version] of a register
    number: list = None        # [name, number]

    def __repr__(self):
        return "%s %d (client %d on %s, %.4f to %s, %s%s)" % (
            self.kind, self.id, self.client, self.node, self.invoked, self.returned and "%.4f" % self.returned, self.outcome,
            ": " + self.error if self.error else "")


@dataclasses.dataclass
class StrongFinal:
    """What a node has when all is healed and applied everywhere."""
    node: str
    lists: dict                # key: [ids]
    versions: dict             # key: [version, value] of a register
    numbers: dict              # name: [[number, id]]
    conflicts: list            # as text


KINDS.update({kind.__name__: kind for kind in (Deed, StrongFinal)})


class StrongHistory(History):
    deeds = property(lambda self: self.lists["Deed"])
    finals = property(lambda self: self.lists["StrongFinal"])

    @classmethod
    def load(cls, path):
        history = super().load(path)
        for record in history.deeds + history.finals:
            for name in ("lists", "versions", "numbers"):
                if getattr(record, name, None) is not None:
                    setattr(record, name, {int(key): value for key, value in getattr(record, name).items()})
        return history


class StrongCase:
    """A history and what follows from it: what was written in which place."""

    def __init__(self, history):
        self.history = history
        self.deeds = {deed.id: deed for deed in history.deeds}
        self.final = history.finals[0]
        self.lists = self.final.lists
        self.numbers = {name: [id for _, id in sorted(map(tuple, rows))] for name, rows in self.final.numbers.items()}
        self.versions = self.find_versions()
        self.there = {id for ids in [*self.lists.values(), *self.numbers.values()] for id in ids} | {id for of in self.versions.values() for id in of.values()}

    def find_versions(self):
        """For each register: version -> who wrote it, as the end, its writers, and then those who saw it say.

        A void one of this number may have been seen where it was written.
        """
        found = {key: {version: value} for key, (version, value) in self.final.versions.items()}
        for deed in self.history.deeds:
            if deed.wrote and deed.outcome == "ok":
                found[deed.wrote[0]].setdefault(deed.wrote[1], deed.id)
        for deed in sorted(self.history.deeds, key=lambda deed: not self.binds(deed)):
            for key, (version, value) in (deed.versions or {}).items():
                found[key].setdefault(version, value)
        return {key: {version: id for version, id in of.items() if version <= self.final.versions[key][0]} for key, of in found.items()}

    def binds(self, deed):
        """Says whether what a deed saw was there for good: it was acknowledged, and has written upon it."""
        return deed.outcome == "ok" and bool(deed.appended or deed.wrote or deed.number)

    def vanished(self, deed):
        """What he saw and is not there in the end, or not in this place: (words for it, ids)."""
        for key, ids in (deed.lists or {}).items():
            now = self.lists[key]
            if now[:len(ids)] != ids:
                common = next((i for i, (one, other) in enumerate(zip(ids, now)) if one != other), min(len(ids), len(now)))
                yield "list %d with %s after place %d, where %s is" % (key, ids[common:common + 5], common, now[common:common + 5]), ids[common:]
        for key, (version, value) in (deed.versions or {}).items():
            if self.versions[key].get(version) != value:
                yield "version %d of register %d as %d, and it is %s" % (version, key, value, self.versions[key].get(version)), [value]

    def may_have_seen(self, deed, gone):
        """Void transactions are shown where doc/consistency.md says so, but nobody is told that he has written upon them.

        In a group of more than three, on any node but their origin that had applied
        them; at their origin to who waited for the lock of the row, and then failed.
        """
        if self.binds(deed):
            return False
        writers = [self.deeds.get(id) for id in gone]
        return all(writer is not None and writer.outcome == "info" and writer.id not in self.there
                   and (deed.outcome != "ok" if writer.node == deed.node else len(self.history.finals) > 3) for writer in writers)


def valid(case):
    """A run in which hardly anything was acknowledged proves nothing."""
    for kind in ("append", "swap", "set", "number", "share", "read"):
        outcomes = [deed.outcome for deed in case.history.deeds if deed.kind == kind]
        if "ok" not in outcomes:
            yield "none of %d of kind %s succeeded" % (len(outcomes), kind)


def ends_equal(case):
    """All nodes have the same in the end, and no conflict was ever decided."""
    for final in case.history.finals:
        if (final.lists, final.versions, final.numbers) != (case.final.lists, case.final.versions, case.final.numbers):
            yield "%s and %s differ" % (case.final.node, final.node)
        for conflict in final.conflicts:
            yield "%s has decided a conflict of strong tables: %s" % (final.node, conflict)


def nothing_twice(case):
    """No id is in a list twice, no number is left out, and no version is two clients'."""
    for key, ids in case.lists.items():
        if len(set(ids)) != len(ids):
            yield "list %d has %s twice" % (key, sorted({id for id in ids if ids.count(id) > 1}))
    for name, rows in case.final.numbers.items():
        numbers = sorted(number for number, _ in rows)
        if numbers != list(range(1, len(numbers) + 1)):
            yield "numbers of %d are %s" % (name, numbers)
    for claim, deeds in claims(case).items():
        if len(deeds) > 1:
            yield "%s %d is that of %s" % (*claim, " and ".join(map(str, deeds)))


def claims(case):
    """(what, place): who was told that it is his."""
    result = {}
    for deed in case.history.deeds:
        if deed.outcome == "ok" and deed.wrote:
            result.setdefault(("version of register %d," % deed.wrote[0], deed.wrote[1]), []).append(deed)
        if deed.outcome == "ok" and deed.number:
            result.setdefault(("number of %d," % deed.number[0], deed.number[1]), []).append(deed)
    return result


def acknowledged_is_there(case):
    """What was acknowledged is there in the end, where its client was told it would be."""
    for deed in case.history.deeds:
        if deed.outcome != "ok":
            continue
        for key in deed.appended or ():
            if deed.id not in case.lists[key]:
                yield "list %d does not have %s" % (key, deed)
        if deed.number and [deed.number[1], deed.id] not in [list(row) for row in case.final.numbers.get(deed.number[0], [])]:
            yield "number %d of %d is not that of %s" % (deed.number[1], deed.number[0], deed)
        if deed.wrote and case.versions[deed.wrote[0]].get(deed.wrote[1]) != deed.id:
            yield "register %d did not get its version %d from %s" % (*deed.wrote, deed)


def refused_is_nowhere(case):
    """What failed is nowhere, and what is there was written by a client, wholly."""
    for id in case.there - {0}:
        deed = case.deeds.get(id)
        if deed is None:
            yield "nobody wrote %d" % id
        elif deed.outcome == "fail" or deed.committing is None:
            yield "%s, and is there" % deed
        elif deed.appended and any(id not in case.lists[key] for key in deed.appended):
            yield "only a part of %s is there" % deed


def seen_stays(case):
    """What anybody saw is there in the end, in the order in which he saw it: also who failed after it."""
    for deed in case.history.deeds:
        for what, gone in case.vanished(deed):
            if not case.may_have_seen(deed, gone):
                yield "%s saw %s" % (deed, what)


def errors_are_known(case):
    """No client is told what one server would not tell it, but that there are too few members."""
    for deed in case.history.deeds:
        if deed.outcome != "fail":
            continue
        state = deed.error.split(" ")[0]
        if state not in EXPECTED_ERRORS or EXPECTED_ERRORS[state] and deed.kind not in EXPECTED_ERRORS[state]:
            yield "%s" % deed


class Order:
    """A graph of what came before what; points of time are in it as well."""

    def __init__(self, case):
        self.case, self.after = case, {}
        self.steps = [step for deed in case.history.deeds for step in self.steps_of(deed)]
        self.add_clock()
        for key, ids in case.lists.items():
            self.add_chain(dict(enumerate(ids, 1)), [(len(lists[key]), step) for step, _, lists, _ in self.steps if key in lists])
        for key, of in case.versions.items():
            self.add_chain(of, [(versions[key][0], step) for step, _, _, versions in self.steps if key in versions])
        for ids in case.numbers.values():
            self.add_chain(dict(enumerate(ids, 1)), [])

    def steps_of(self, deed):
        """What is to have one place in the order: a transaction, or one key that was read without a lock."""
        if deed.id not in self.case.there and deed.outcome != "ok" or any(self.case.vanished(deed)):
            return
        if deed.kind != "read":
            yield deed.id, deed, deed.lists or {}, deed.versions or {}
            return
        for key, ids in deed.lists.items():
            yield (deed.id, "list", key), deed, {key: ids}, {}
        for key, seen in deed.versions.items():
            yield (deed.id, "register", key), deed, {}, {key: seen}

    def add(self, before, after):
        if before != after:
            self.after.setdefault(before, set()).add(after)

    def add_chain(self, places, reads):
        """places: place -> who wrote it; reads: (the last place that was seen, by whom)."""
        for place, id in places.items():
            if place + 1 in places:
                self.add(id, places[place + 1])
        for place, step in reads:
            if place in places:
                self.add(places[place], step)
            if place + 1 in places:
                self.add(step, places[place + 1])

    def add_clock(self):
        """Who had his answer before another one asked comes before it."""
        moments = sorted({deed.returned for _, deed, _, _ in self.steps if deed.outcome == "ok"})
        index = {moment: i for i, moment in enumerate(moments)}
        for i in range(1, len(moments)):
            self.add(("time", i - 1), ("time", i))
        for step, deed, lists, versions in self.steps:
            if deed.outcome == "ok" and not self.shows_what_nobody_acknowledged(deed, lists, versions):
                self.add(step, ("time", index[deed.returned]))
            # the last answer before it asked
            low, high = 0, len(moments)
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if moments[middle] < deed.invoked else (low, middle)
            if low:
                self.add(("time", low - 1), step)

    def shows_what_nobody_acknowledged(self, deed, lists, versions):
        """Who only reads what may not be acknowledged yet does not bind others: doc/consistency.md says where it is shown.

        In a group of more than three, on any node but its origin that has applied it.
        """
        if deed.appended or deed.wrote or deed.number:
            return False
        seen = [ids[-1] for ids in lists.values() if ids] + [value for _, value in versions.values()]
        return any(self.may_be_shown_early(self.case.deeds[id], deed) for id in seen if id in self.case.deeds)

    def may_be_shown_early(self, writer, reader):
        return writer.node != reader.node and len(self.case.history.finals) > 3 and (writer.outcome == "info" or writer.returned > reader.returned)

    def find_cycle(self):
        """Nodes of a cycle, or None."""
        state = {}
        for root in list(self.after):
            if root in state:
                continue
            path, state[root] = [(root, iter(self.after.get(root, ())))], "open"
            while path:
                following = next(path[-1][1], None)
                if following is None:
                    state[path.pop()[0]] = "done"
                elif state.get(following) == "open":
                    names = [name for name, _ in path]
                    return names[names.index(following):]
                elif following not in state:
                    state[following] = "open"
                    path.append((following, iter(self.after.get(following, ()))))
        return None


def has_an_order(case):
    """All that happened happened in some order, the same for all, that agrees with the clock."""
    cycle = Order(case).find_cycle()
    if cycle:
        steps = [step for step in cycle if not (isinstance(step, tuple) and step[0] == "time")]
        yield "each came after the next one: %s" % "; ".join(
            str(case.deeds[step[0] if isinstance(step, tuple) else step]) + (" (%s %d)" % step[1:] if isinstance(step, tuple) else "") for step in steps[:8])


RULES = [valid, ends_equal, nothing_twice, acknowledged_is_there, refused_is_nowhere, seen_stays, errors_are_known, has_an_order]


def check(history):
    """All findings, as (rule, text)."""
    if not history.finals:
        return [("valid", "no node was read in the end")]
    case = StrongCase(history)
    return [(rule.__name__, text) for rule in RULES for text in rule(case)]


def main():
    failed = 0
    for path in sys.argv[1:]:
        problems = check(StrongHistory.load(path))
        print("%s %s" % ("not ok" if problems else "ok", path))
        for problem in problems:
            print("    %s: %s" % problem)
        failed += bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
