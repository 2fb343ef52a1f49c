#!/usr/bin/python3
"""Judges a history: was what quorum, all and the barrier promise kept?

checker.py FILE...

What is promised, and so what is checked: a write that was acknowledged is on
every node in the end, and in every read that waited for the barrier after the
acknowledgement; nobody sees it at its origin before; what was refused is
nowhere, ever; transaction_status tells the truth. Two nodes' writers are not
ordered by it: of writes of one register that did not know each other the last
one wins, and a read must contain, by its clock, what was acknowledged before
it, not show it. A read that shows a write before it is acknowledged binds
later reads only if it was made at the write's origin.

Each rule is a function that yields what contradicts it; check() runs all.
"""
import bisect
import math
import sys

from history import History, dot_of, merge, within

ENDS_A_WAIT = ("crash", "cancel", "terminate")
COMMITTED = ("acknowledged", "committed")


def required(level, members):
    """How many members have it, the origin included."""
    return {"one": 1, "quorum": members // 2 + 1, "all": members}[level]


class Case:
    """A history and what follows from it."""

    def __init__(self, history):
        self.history, self.setting = history, history.setting
        self.writes = {write.id: write for write in history.writes()}
        self.strong = [write for write in self.writes.values() if write.level != "one"]
        self.reads = sorted((operation for operation in history.operations if not operation.is_write() and operation.outcome == "ok"),
                            key=lambda read: read.returned)
        self.finals = history.finals
        self.there = {id for final in self.finals for id in final.entries}
        self.shown = self.first_shown()
        self.acknowledged = {write.id: moment for write in self.strong for moment in [self.when_acknowledged(write)] if moment is not None}

    def first_shown(self):
        """For each write seen at its origin: the first read that shows it."""
        shown = {}
        for read in self.reads:
            for id in values_of(read):
                write = self.writes.get(id)
                if write is not None and write.node == read.node:
                    shown.setdefault(id, read)
        return shown

    def may_show(self, write):
        """From when on a write may be visible at its origin although nobody acknowledged it: its wait may have been ended."""
        if write.committing is None:
            return math.inf
        moments = [write.committing + (self.setting.write_timeout or math.inf)]
        moments += [event.invoked for event in self.history.events if event.kind in ENDS_A_WAIT and event.node == write.node
                    and (event.returned is None or event.returned >= write.committing)]
        return min(moments)

    def seen(self, write):
        """When it is known to be acknowledged because it was seen at its origin, or None."""
        read = self.shown.get(write.id)
        return read.returned if read is not None and read.returned < self.may_show(write) else None

    def when_acknowledged(self, write):
        """The first moment at which the write is known to be acknowledged, or None."""
        moments = [write.returned] if write.outcome == "ok" else []
        moments += [answer.returned for answer in self.history.answers if answer.write == write.id and answer.status == "acknowledged"]
        moments += [moment for moment in [self.seen(write)] if moment is not None]
        return min(moments, default=None)

    def shows_half(self, read, id):
        """Is a write in the set, and not in its register, in the same snapshot?"""
        write = self.writes.get(id)
        return write is not None and write.key in read.registers and not within(write.clock, read.registers[write.key][1])

    def statistics(self):
        writes = list(self.writes.values())
        return {"writes": len(writes), "reads": len(self.reads), "ok": sum(write.outcome == "ok" for write in writes),
                "fail": sum(write.outcome == "fail" for write in writes), "info": sum(write.outcome == "info" for write in writes),
                "early": sum(self.seen(write) is not None and (write.outcome != "ok" or self.seen(write) < write.returned) for write in self.strong)}


def values_of(read):
    """All ids of writes a read shows."""
    return [value for value, _ in read.registers.values()] + read.found


def valid(case):
    """A run in which hardly anything was acknowledged proves nothing."""
    if {final.node for final in case.finals} != set(case.setting.nodes):
        yield "not every node was read in the end"
    for what, operations in (("writes", case.strong), ("reads", [o for o in case.history.operations if o.kind == "read"])):
        good = sum(operation.outcome == "ok" for operation in operations)
        if good == 0 or good * 10 < len(operations):
            yield "only %d of %d %s succeeded" % (good, len(operations), what)


def acknowledged_is_there(case):
    """What was acknowledged is on every node in the end."""
    for final in case.finals:
        entries = set(final.entries)
        for write in case.writes.values():
            if write.outcome != "ok" and write.id not in case.acknowledged:
                continue
            if write.id not in entries:
                yield "%s does not have %s" % (final.node, write)
            if write.key is not None and not within(write.clock, final.registers[write.key][1]):
                yield "%s: register %d %s does not contain %s %s" % (final.node, write.key, final.registers[write.key], write, write.clock)


def ends_equal(case):
    """All nodes have the same in the end."""
    for other in case.finals[1:]:
        if set(other.entries) != set(case.finals[0].entries):
            yield "%s and %s do not have the same set: %s" % (case.finals[0].node, other.node, sorted(set(other.entries) ^ set(case.finals[0].entries))[:20])
        for key, state in other.registers.items():
            if state != case.finals[0].registers[key]:
                yield "register %d is %s on %s, %s on %s" % (key, case.finals[0].registers[key], case.finals[0].node, state, other.node)


def last_writer_wins(case):
    """A register is what its last write made it, under the merge of all clocks."""
    for final in case.finals:
        for key, (value, clock) in final.registers.items():
            versions = [case.setting.initial[key]] + [(write.id, write.clock) for write in case.writes.values()
                                                      if write.key == key and write.id in case.there]
            winner = max(versions, key=lambda version: dot_of(version[1]))[0]
            if value != winner:
                yield "%s: register %d is %d, must be %d" % (final.node, key, value, winner)
            if clock != merge(*(clock for _, clock in versions)):
                yield "%s: register %d has clock %s, must have %s" % (final.node, key, clock, merge(*(clock for _, clock in versions)))


def nothing_from_nowhere(case):
    """What is read or there in the end was written by a client."""
    known = case.writes.keys() | {value for value, _ in case.setting.initial.values()}
    for read in case.reads:
        for id in values_of(read):
            if id not in known:
                yield "nobody wrote %d, seen by %s" % (id, read)
    for final in case.finals:
        for id in set(final.entries) | {value for value, _ in final.registers.values()} | set(final.losers):
            if id not in known:
                yield "nobody wrote %d, which %s has" % (id, final.node)


def refused_is_nowhere(case):
    """What failed, or was never to be committed, is in no read, on no node, and lost no conflict."""
    refused = {write.id: write for write in case.writes.values() if write.outcome == "fail" or write.committing is None}
    for read in case.reads:
        for id in values_of(read):
            if id in refused:
                yield "%s, and was seen by %s" % (refused[id], read)
    for final in case.finals:
        for id in refused.keys() & (set(final.entries) | {value for value, _ in final.registers.values()} | set(final.losers)):
            yield "%s, and is on %s" % (refused[id], final.node)


def seen_stays(case):
    """What any read has shown is there in the end."""
    for read in case.reads:
        for id in values_of(read):
            if id in case.writes and id not in case.there:
                yield "%s was seen by %s and is gone" % (case.writes[id], read)


def no_stale_read(case):
    """A read that waited for the barrier contains every write of quorum or all that was acknowledged before it began."""
    history = {}
    for moment, id in sorted((moment, id) for id, moment in case.acknowledged.items()):
        write = case.writes[id]
        if write.key is not None:
            moments, clocks = history.setdefault(write.key, ([], [{}]))
            moments.append(moment)
            clocks.append(merge(clocks[-1], write.clock))
    for read in case.reads:
        if read.kind != "read":
            continue
        for key, (_, clock) in read.registers.items():
            moments, clocks = history.get(key, ([], [{}]))
            if not within(clocks[bisect.bisect_left(moments, read.invoked)], clock):
                missed = [write for write in case.strong if write.key == key and case.acknowledged.get(write.id, math.inf) < read.invoked
                          and not within(write.clock, clock)]
                yield "%s does not contain %s %s: register %d is %s" % (read, missed[0], missed[0].clock, key, read.registers[key])
        for id in set(read.wanted) - set(read.found):
            if case.acknowledged.get(id, math.inf) < read.invoked:
                yield "%s does not show %s" % (read, case.writes[id])


def vector_is_enough(case):
    """A read that waited for the vector of a write contains the write, whatever its level."""
    for read in case.reads:
        if read.kind != "after":
            continue
        write = case.writes[read.write]
        if write.key is not None and not within(write.clock, read.registers[write.key][1]):
            yield "%s does not contain %s %s: register %d is %s" % (read, write, write.clock, write.key, read.registers[write.key])
        if write.id in set(read.wanted) - set(read.found):
            yield "%s does not show %s" % (read, write)


def no_dirty_read(case):
    """Nobody sees a write of quorum or all at its origin before it is acknowledged."""
    for write in case.strong:
        if write.error and write.error.startswith("40003") and case.seen(write) is not None:
            yield "%s was seen while it waited, by %s" % (write, case.shown[write.id])
    for witness in case.history.witnesses:
        write = case.writes[witness.write]
        if write.level == "one" or not witness.seen < case.may_show(write):
            continue
        possible = len(case.setting.nodes) - sum(not has for has in witness.has.values())
        if possible < required(write.level, len(case.setting.nodes)):
            yield "%s was seen at %.4f, when %s did not have it" % (write, witness.seen, ", ".join(node for node, has in witness.has.items() if not has))


def success_is_plain(case):
    """A success comes without a warning that it may be none."""
    for write in case.writes.values():
        if write.outcome == "ok" and write.notices:
            yield "%s: %s" % (write, write.notices)


def unacknowledged_is_committed(case):
    """40003 is said of transactions that are committed at their origin: so they arrive."""
    for write in case.writes.values():
        if write.error and write.error.startswith("40003") and write.id not in case.there:
            yield "%s, and is on no node" % write


def status_is_true(case):
    """transaction_status says what is so, and in the end it knows."""
    for answer in case.history.answers:
        write = case.writes[answer.write]
        said = "%s of %s at %.4f: %s" % (answer.node, write, answer.invoked, answer.status)
        there = write.id in case.there
        if answer.status in COMMITTED and not there:
            yield "%s, but it is nowhere" % said
        elif answer.status == "aborted" and there:
            yield "%s, but it is there" % said
        elif answer.status == "committed" and write.level != "one" and write.outcome == "ok" and write.returned < answer.invoked:
            yield "%s, but the client had the acknowledgement" % said
        elif answer.final and answer.status == "unknown":
            yield "%s, with all nodes up and equal" % said
        elif answer.final and answer.status == "committed" and write.level != "one":
            yield "%s, with the write on all nodes" % said


def transactions_are_whole(case):
    """A read that shows one part of a transaction shows the other."""
    for read in case.reads:
        for id in read.torn:
            yield "%s shows half of %s: it is not in the set" % (read, case.writes.get(id, id))
        for id in read.found:
            if case.shows_half(read, id):
                yield "%s shows half of %s %s: the register is %s" % (read, case.writes[id], case.writes[id].clock, read.registers[case.writes[id].key])


def nodes_go_forward(case):
    """On one node each read and write contains what was read and written there before, unless the node crashed in between."""
    for node in case.setting.nodes:
        steps = [(moment, "a crash", None, None, None) for event in case.history.events if event.kind == "crash" and event.node == node
                 for moment in (event.invoked, event.returned or math.inf)]
        for operation in case.history.operations:
            for key, clock in clocks_of(operation) if operation.node == node else ():
                steps.append((operation.invoked, "begin", operation, key, clock))
                if operation.outcome == "ok":
                    steps.append((operation.returned, "end", operation, key, clock))
        past = {}
        for _, what, operation, key, clock in sorted(steps, key=lambda step: step[:2]):
            if what == "a crash":
                past = {}
            elif what == "end":
                past[key] = merge(past.get(key, {}), clock)
            elif not within(past.get(key, {}), clock):
                yield "%s: %s of register %d does not contain %s, seen on %s before" % (operation, clock, key, past[key], node)


def clocks_of(operation):
    if operation.is_write():
        return [(operation.key, operation.clock)] if operation.clock and operation.key is not None else []
    return [(key, clock) for key, (_, clock) in (operation.registers or {}).items()]


RULES = [valid, acknowledged_is_there, ends_equal, last_writer_wins, nothing_from_nowhere, refused_is_nowhere, seen_stays, no_stale_read, vector_is_enough,
         no_dirty_read, success_is_plain, unacknowledged_is_committed, status_is_true, transactions_are_whole, nodes_go_forward]


def check(history):
    """All findings, as (rule, text)."""
    case = Case(history)
    return [(rule.__name__, text) for rule in RULES for text in rule(case)]


def main():
    failed = 0
    for path in sys.argv[1:]:
        problems = check(History.load(path))
        print("%s %s" % ("not ok" if problems else "ok", path))
        for problem in problems:
            print("    %s: %s" % problem)
        failed += bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
