#!/usr/bin/python3
"""Shows that the checker finds what it is for, without a server.

A group of nodes is simulated that keeps its promises: none of its histories may
be complained of. Then one thing in such a history is made wrong, for each rule
in each way that the rule has to find: a rule that says nothing is "not ok".
"""
import copy
import random
import sys
import tempfile

from checker import Case, check, required
from history import Answer, Event, Final, History, Operation, Setting, Witness, merge

TIMEOUT = 300.0
KEYS = range(3)


class Simulation:
    """Nodes that apply each other's writes after random delays, and clients that do one operation after the other.

    What is acknowledged is applied on enough nodes, and at its origin not visible before.
    """

    def __init__(self, seed, members=3, operations=400):
        self.random = random.Random("simulation %d" % seed)
        self.nodes = ["n%d" % (i + 1) for i in range(members)]
        self.history = History()
        self.time, self.counter = 0.0, 100
        initial = {key: (0, {1: key + 1}) for key in KEYS}
        self.history.add(Setting(self.nodes, seed, TIMEOUT, initial))
        self.registers = {node: dict(initial) for node in self.nodes}
        self.entries = {node: {0} for node in self.nodes}
        self.acknowledged = []
        for id in range(1, operations):
            self.step(id)
        for node in self.nodes:
            self.history.add(Final(node, self.joined_registers(), sorted(self.all_entries()), []))

    def tick(self):
        self.time += self.random.random()
        return self.time

    def step(self, id):
        node = self.random.choice(self.nodes)
        kind = self.random.choice(("write", "write", "insert", "read", "read", "look"))
        operation = Operation(id, kind, self.nodes.index(node), node, invoked=self.tick())
        if operation.is_write():
            self.write(operation)
        else:
            self.read(operation)
        operation.returned = self.tick()
        self.history.add(operation)

    def write(self, operation):
        operation.level = self.random.choice(("one", "quorum", "quorum", "all"))
        operation.token = "token %d" % operation.id
        if operation.kind == "write":
            operation.key = self.random.choice(KEYS)
            self.counter += 1
            operation.clock = merge(self.registers[operation.node][operation.key][1], {self.nodes.index(operation.node) + 1: self.counter})
        fate = self.random.random()
        if fate < 0.1:
            operation.outcome, operation.error = "fail", "57P03 too few members"
            operation.committing = self.tick()
            self.answer(operation, "aborted")
            return
        operation.committing = self.tick()
        if fate < 0.15:
            operation.error = "connection lost"
            if self.random.random() < 0.5:
                self.answer(operation, "aborted")
                return
            self.history.add(Event("crash", operation.node, self.tick(), self.tick()))
        elif fate < 0.2:
            operation.error = "40003 committed here, but not acknowledged"
            self.history.add(Event("cancel", operation.node, self.tick(), self.tick()))
        else:
            operation.outcome = "ok"
        others = [node for node in self.nodes if node != operation.node]
        reached = self.random.sample(others, required(operation.level, len(self.nodes)) - 1) if operation.outcome == "ok" else []
        for node in [*reached, operation.node]:
            self.apply(node, operation)
        if operation.outcome == "ok":
            if self.random.random() < 0.3:
                self.look_early(operation)
            self.acknowledged.append(operation.id)
        self.answer(operation, "acknowledged")

    def look_early(self, write):
        """Another session sees the write before its client has the answer."""
        look = Operation(1000000 + write.id, "look", 99, write.node, invoked=self.tick())
        self.read(look)
        look.found = look.wanted = [write.id]
        look.returned = self.tick()
        self.history.add(look)
        self.history.add(Witness(write.id, look.returned, {node: write.id in self.entries[node] for node in self.nodes if node != write.node}))

    def apply(self, node, write):
        """With all that its origin had: streams are in order."""
        self.entries[node] |= self.entries[write.node] | {write.id}
        for key in KEYS:
            self.join(node, key, self.registers[write.node][key])
        if write.key is not None:
            self.join(node, write.key, (write.id, write.clock))

    def join(self, node, key, state):
        mine = self.registers[node][key]
        self.registers[node][key] = (max(mine, state, key=lambda state: max(state[1].values()))[0], merge(mine[1], state[1]))

    def read(self, operation):
        operation.way = {"read": "function", "look": "plain"}[operation.kind]
        if operation.kind == "read":
            for node in self.nodes:
                self.entries[operation.node] |= self.entries[node]
                for key in KEYS:
                    self.join(operation.node, key, self.registers[node][key])
        operation.wanted = self.random.sample(self.acknowledged, min(5, len(self.acknowledged)))
        operation.found = [id for id in operation.wanted if id in self.entries[operation.node]]
        operation.registers = dict(self.registers[operation.node])
        operation.torn, operation.outcome = [], "ok"

    def answer(self, operation, status):
        for node in self.nodes:
            self.history.add(Answer(operation.id, node, 1e6, 1e6 + 1, status, True))

    def all_entries(self):
        return set().union(*self.entries.values())

    def joined_registers(self):
        for node in self.nodes[1:]:
            for key in KEYS:
                self.join(self.nodes[0], key, self.registers[node][key])
        return dict(self.registers[self.nodes[0]])


class Plants:
    """Each method makes one thing wrong; its name says which rule must complain."""

    def __init__(self, history):
        self.history, self.case = history, Case(history)
        self.final = history.finals[1]

    def write(self, *outcomes, **wanted):
        """A write in the middle of the history."""
        writes = [write for write in self.history.writes() if write.outcome in (outcomes or ("ok",)) and write.level != "one"
                  and all(getattr(write, name) == value for name, value in wanted.items())]
        return writes[len(writes) // 2]

    def strong_register_write(self):
        """An acknowledged one after which there were barrier reads."""
        return self.write(kind="write")

    def read_after(self, write, kind="read"):
        return next(operation for operation in self.history.operations if operation.kind == kind and operation.invoked > write.returned)

    def forget(self, write):
        """The write never was on any node."""
        for final in self.history.finals:
            final.entries = [id for id in final.entries if id != write.id]

    def look_at(self, write, moment):
        """Another session on the write's node sees it at the moment."""
        look = copy.deepcopy(self.case.reads[0])
        look.kind, look.node, look.client, look.invoked, look.returned, look.registers, look.found = "look", write.node, 98, moment, moment, {}, [write.id]
        self.history.operations.append(look)

    def read_without(self, write, moment, kind="read"):
        """Another session reads at the moment and does not find the write in the set."""
        read = copy.deepcopy(self.case.reads[0])
        read.kind, read.client, read.invoked, read.returned, read.registers = kind, 99, moment, moment, {}
        read.wanted, read.found, read.write = [write.id], [], write.id
        self.history.operations.append(read)

    def no_answers(self, write):
        self.history.answers[:] = [answer for answer in self.history.answers if answer.write != write.id]

    def valid__hardly_anything_acknowledged(self):
        for operation in self.history.operations[10:]:
            operation.outcome = "info"

    def valid__no_final_read(self):
        self.history.finals.pop()

    def acknowledged_is_there__insert_on_no_node(self):
        self.forget(self.write(kind="insert"))

    def acknowledged_is_there__insert_not_on_one_node(self):
        self.final.entries.remove(self.write(kind="insert").id)

    def acknowledged_is_there__register_without_it(self):
        write = self.strong_register_write()
        node = self.case.setting.nodes.index(write.node) + 1
        for final in self.history.finals:
            value, clock = final.registers[write.key]
            final.registers[write.key] = value, clock | {node: write.clock[node] - 1}

    def acknowledged_is_there__seen_by_another_session(self):
        write = self.write(kind="insert")
        write.outcome, write.error = "info", "connection lost"
        self.no_answers(write)
        self.look_at(write, write.committing)
        self.forget(write)

    def ends_equal__set(self):
        self.final.entries.append(self.write("fail").id)

    def ends_equal__register(self):
        value, clock = self.final.registers[0]
        self.final.registers[0] = value + 1, clock

    def last_writer_wins__former_value(self):
        for final in self.history.finals:
            final.registers[0] = 0, final.registers[0][1]

    def last_writer_wins__clock(self):
        for final in self.history.finals:
            value, clock = final.registers[0]
            final.registers[0] = value, merge(clock, {1: 10**6})

    def nothing_from_nowhere__in_the_end(self):
        self.final.entries.append(123456789)

    def nothing_from_nowhere__in_a_read(self):
        self.case.reads[5].registers[0] = 123456789, {1: 1}

    def refused_is_nowhere__in_the_end(self):
        for final in self.history.finals:
            final.entries.append(self.write("fail").id)

    def refused_is_nowhere__in_a_read(self):
        write = self.write("fail", kind="write")
        self.read_after(write).registers[write.key] = write.id, write.clock

    def refused_is_nowhere__in_a_conflict(self):
        self.final.losers.append(self.write("fail").id)

    def refused_is_nowhere__never_committed(self):
        write = self.write("info")
        write.committing = None
        for final in self.history.finals:
            final.entries.append(write.id)

    def seen_stays__gone(self):
        write = self.write("info", error="connection lost")
        self.forget(write)
        self.read_after(write).found.append(write.id)

    def no_stale_read__register(self):
        write = self.strong_register_write()
        read = self.read_after(write)
        read.registers[write.key] = self.case.setting.initial[write.key]

    def no_stale_read__set(self):
        write = self.write(kind="insert")
        self.read_without(write, write.returned + 0.000001)

    def no_stale_read__right_after(self):
        """By the width of a hair, in the last read before the write came to the node by itself."""
        write = self.strong_register_write()
        read = self.read_after(write)
        read.invoked = write.returned + 0.000001
        node = self.case.setting.nodes.index(write.node) + 1
        read.registers[write.key] = read.registers[write.key][0], read.registers[write.key][1] | {node: write.clock[node] - 1}

    def no_stale_read__seen_before_at_the_origin(self):
        """The client does not have its answer yet, but somebody else saw the write."""
        write = self.write(kind="insert")
        write.returned = write.committing + 3
        self.look_at(write, write.committing + 1)
        self.read_without(write, write.committing + 2)

    def no_stale_read__status_said_acknowledged(self):
        write = self.write(kind="insert")
        write.outcome, write.error = "info", "connection lost"
        self.no_answers(write)
        self.history.add(Answer(write.id, "n1", write.returned, write.returned, "acknowledged"))
        self.read_without(write, write.returned + 1)

    def vector_is_enough__register(self):
        write = self.strong_register_write()
        read = copy.deepcopy(self.read_after(write))
        read.kind, read.write = "after", write.id
        read.registers[write.key] = self.case.setting.initial[write.key]
        self.history.operations.append(read)

    def vector_is_enough__set(self):
        write = self.write(kind="insert")
        self.read_without(write, write.returned, "after")

    def no_dirty_read__of_a_write_that_timed_out(self):
        write = self.write(kind="insert")
        write.outcome, write.error, write.returned = "info", "40003 timeout", write.committing + TIMEOUT + 1
        self.look_at(write, write.committing + TIMEOUT / 2)

    def no_dirty_read__of_a_write_nobody_else_has(self):
        witness = next(witness for witness in self.history.witnesses if self.case.writes[witness.write].level == "quorum")
        witness.has = {node: False for node in witness.has}

    def success_is_plain__warning(self):
        self.write().notices = ["WARNING:  canceling wait for synchronous replication due to user request"]

    def unacknowledged_is_committed__gone(self):
        write = next(write for write in self.history.writes() if write.error and write.error.startswith("40003"))
        self.forget(write)
        self.no_answers(write)

    def status_is_true__acknowledged_but_gone(self):
        self.forget(self.write("info", error="connection lost"))
        write = self.write("info", error="connection lost")
        self.history.add(Answer(write.id, "n1", 1e6, 1e6, "acknowledged", True))

    def status_is_true__aborted_but_there(self):
        self.history.add(Answer(self.write().id, "n1", 1e6, 1e6, "aborted", True))

    def status_is_true__does_not_know(self):
        self.history.add(Answer(self.write().id, "n1", 1e6, 1e6, "unknown", True))

    def status_is_true__unacknowledged_but_acknowledged(self):
        write = self.write()
        self.history.add(Answer(write.id, "n1", write.returned + 1, write.returned + 2, "committed"))

    def transactions_are_whole__not_in_the_set(self):
        read = self.case.reads[5]
        read.torn = [read.registers[0][0]]

    def transactions_are_whole__not_in_the_register(self):
        write = self.write("info", kind="write")
        look = self.read_after(write, "look")
        look.found = look.wanted = [write.id]
        look.registers[write.key] = self.case.setting.initial[write.key]

    def nodes_go_forward__older_read(self):
        looks = [operation for operation in self.history.operations if operation.kind == "look"]
        look = looks[-1]
        self.history.events[:] = [event for event in self.history.events if event.kind != "crash"]
        look.registers = {key: self.case.setting.initial[key] for key in look.registers}


def reloaded(history):
    """What comes out of the file it is kept in."""
    with tempfile.NamedTemporaryFile() as file:
        history.save(file.name)
        return History.load(file.name)


def main():
    missed = 0
    for members in (3, 5):
        complaints = [(seed, complaint) for seed in range(20) for complaint in check(Simulation(seed, members).history)]
        print("%s 20 histories of %d nodes that keep their promises" % ("not ok" if complaints else "ok", members))
        for complaint in complaints[:5]:
            print("    %s" % (complaint,))
        missed += bool(complaints)
    for name in [name for name in dir(Plants) if "__" in name.strip("_")]:
        history = Simulation(7).history
        getattr(Plants(history), name)()
        rule, _, what = name.partition("__")
        ok = any(complaint == rule for complaint, _ in check(reloaded(history)))
        print("%s planted: %s: %s" % ("ok" if ok else "not ok", rule, what.replace("_", " ")))
        missed += not ok
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
