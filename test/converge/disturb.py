"""What goes on beside the clients: links that stand still, processes and servers that end, slots that are lost."""
import random

from tables import CHOSEN, SHIFTS, TABLES

KINDS = {"pause": 30, "resume": 22, "end_worker": 12, "end_walsender": 8, "freeze": 6, "shift": 14,
         "crash": 6, "rewind": 4, "drop_slot": 3}


class Disturbance:
    """A list of (after so many transactions, what, with what), made by the seed; and doing it."""

    def __init__(self, group, seed, total, without):
        self.group = group
        self.random = random.Random("disturbance %d" % seed)
        self.origins = group.origins()
        self.plan = sorted(((self.random.randrange(total), *self.draw()) for _ in range(self.random.randrange(4, 13))),
                           key=lambda event: event[0])
        self.plan = [event for event in self.plan if event[1] not in without]
        # some links stand still from the start: from clients that do not know of each other come most conflicts
        still = self.random.sample(group.links, self.random.randrange(len(group.links)))
        self.plan[:0] = [(0, "pause", link) for link in still]

    def draw(self):
        kind, = self.random.choices(list(KINDS), KINDS.values())
        if kind in ("freeze", "crash"):
            return kind, (self.random.choice(self.group.nodes),)
        if kind == "shift":
            return kind, (self.random.choice(self.group.nodes), self.random.choice(SHIFTS))
        return kind, self.random.choice(self.group.links)

    def run(self, progress):
        for after, kind, arguments in self.plan:
            progress.wait_for(after)
            getattr(self, kind)(*arguments)

    def copied(self):
        """Names of the nodes for which a slot was lost."""
        return {arguments[0].name for _, kind, arguments in self.plan if kind == "drop_slot"}

    def describe(self):
        return ", ".join("%s(%s)" % (kind, ", ".join(getattr(a, "name", a) for a in arguments)) for _, kind, arguments in self.plan)

    def pause(self, reader, writer):
        self.group.pause(reader, writer)

    def resume(self, reader, writer):
        self.group.resume(reader, writer)

    def end_worker(self, reader, writer):
        self.group.end_worker(reader, writer)

    def end_walsender(self, reader, writer):
        self.group.end_walsender(reader, writer)

    def drop_slot(self, reader, writer):
        self.group.drop_slot(reader, writer)

    def rewind(self, reader, writer):
        self.group.rewind(reader, writer, self.origins[reader.name, writer.name])

    def freeze(self, node):
        for table in TABLES:
            node.sql("VACUUM (FREEZE) %s" % table.name)
        node.sql("VACUUM (FREEZE) repl_ml.tombstone")

    def crash(self, node):
        node.crash()
        node.start()

    def shift(self, node, resolver):
        if any(table.name == "shifting" for table in CHOSEN):
            node.sql("SELECT repl_ml.set_resolver('shifting', %s)", resolver)
