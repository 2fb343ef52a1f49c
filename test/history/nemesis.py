"""What goes wrong while clients work: a plan made by the seed, done and undone.

A fault is (begins after so many seconds since the last one, kind, arguments,
lasts so long); some begin before the former has ended.
"""
import os
import random
import signal

import psycopg2

from cluster import waiting
from history import Event, now

KINDS = {"isolate": 14, "unplug": 6, "one_way": 8, "pair": 8, "halves": 6, "pause": 12, "kill": 14, "immediate": 6,
         "hold_up": 12, "end_workers": 6, "cancel": 10, "terminate": 10}
WITHOUT_NETWORK = {"isolate": "hold_up", "unplug": "pause", "one_way": "hold_up", "pair": "hold_up", "halves": "hold_up"}


class Nemesis:
    def __init__(self, cluster, history, seed, seconds):
        self.cluster, self.history = cluster, history
        self.random = random.Random("nemesis %d" % seed)
        self.plan = []
        self.undo = []  # (when, how), of what is broken now
        self.counts = {}
        time = self.random.uniform(0.5, 1)
        while time < seconds - 1:
            kind, = self.random.choices(list(KINDS), KINDS.values())
            lasts = self.random.choice((0.2, 0.5, 1, 2, 3.5))
            self.plan.append((time, kind if cluster.network else WITHOUT_NETWORK.get(kind, kind), self.draw(), lasts))
            # a third of them combined
            time += self.random.uniform(0.1, 0.4) if self.random.random() < 0.33 else lasts + self.random.uniform(0.3, 1.2)

    def draw(self):
        """The nodes in a random order: a kind takes as many of them as it is about."""
        return self.random.sample(range(len(self.cluster.servers)), len(self.cluster.servers))

    def describe(self):
        return ", ".join("%s(%s) at %.1f for %.1f" % (kind, " ".join(self.cluster.servers[i].name for i in order[:self.involves(kind)]), time, lasts)
                         for time, kind, order, lasts in self.plan)

    def involves(self, kind):
        return {"one_way": 2, "pair": 2, "halves": len(self.cluster.servers) // 2}.get(kind, 1)

    def run(self):
        """Does what is planned; all is well again at the end."""
        begin = now()
        for time, kind, order, lasts in self.plan:
            self.wait_and_undo(begin + time)
            servers = [self.cluster.servers[i] for i in order[:self.involves(kind)]]
            undo = getattr(self, kind)(*servers)
            if undo is not None:
                self.undo.append((now() + lasts, undo))
            self.counts[kind] = self.counts.get(kind, 0) + 1
        self.wait_and_undo(max((when for when, _ in self.undo), default=0))

    def wait_and_undo(self, until):
        while True:
            when, undo = min(self.undo, key=lambda item: item[0], default=(until + 1, None))
            waiting.wait(max(0, min(when, until) - now()))
            if when > until:
                return
            self.undo.remove((when, undo))
            undo()

    def record(self, kind, server, detail=None):
        return self.history.add(Event(kind, server.name, now(), detail=detail))

    # the network

    def isolate(self, server):
        """From the other nodes, not from clients."""
        return self.cut([(server, other) for other in self.cluster.servers] + [(other, server) for other in self.cluster.servers], "isolate")

    def one_way(self, sender, receiver):
        return self.cut([(sender, receiver)], "one_way")

    def pair(self, one, other):
        return self.cut([(one, other), (other, one)], "pair")

    def halves(self, *minority):
        others = [server for server in self.cluster.servers if server not in minority]
        return self.cut([pair for one in minority for other in others for pair in ((one, other), (other, one))], "halves")

    def cut(self, pairs, what):
        event = self.record(what, pairs[0][0], " ".join("%s>%s" % (sender.name, receiver.name) for sender, receiver in pairs))
        for sender, receiver in pairs:
            self.cluster.network.cut(sender.number, receiver.number)

        def mend():
            for sender, receiver in pairs:
                self.cluster.network.mend(sender.number, receiver.number)
            event.returned = now()
        return mend

    def unplug(self, server):
        event = self.record("unplug", server)
        self.cluster.network.unplug(server.number)

        def plug():
            self.cluster.network.plug(server.number)
            event.returned = now()
        return plug

    # processes

    def pause(self, server):
        """All of a node stands still."""
        if not server.is_up() or server.is_paused:
            return None
        event = self.record("pause", server)
        server.pause()

        def resume():
            if server.is_up():
                server.resume()
            event.returned = now()
        return resume

    def hold_up(self, server):
        """What others are to be sent by this node stays where it is, and with it what they acknowledge."""
        senders = self.pids(server, "backend_type = 'walsender'")
        if not senders:
            return None
        event = self.record("hold_up", server)
        self.send(senders, signal.SIGSTOP)

        def resume():
            self.send(senders, signal.SIGCONT)
            event.returned = now()
        return resume

    def kill(self, server):
        return self.crash(server, server.kill, "kill -9")

    def immediate(self, server):
        return self.crash(server, server.stop_immediately, "immediate")

    def crash(self, server, how, detail):
        if not server.is_up():
            return None
        event = self.record("crash", server, detail)
        how()

        def start():
            server.start()
            event.returned = now()
        return start

    def end_workers(self, server):
        """Those that apply, and those that send."""
        self.record("end_workers", server).returned = now()
        self.ask(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type IN ('repl_ml apply', 'walsender')")

    # clients

    def cancel(self, server):
        return self.end_waits(server, "cancel", "pg_cancel_backend")

    def terminate(self, server):
        return self.end_waits(server, "terminate", "pg_terminate_backend")

    def end_waits(self, server, what, function):
        """Holds up what the node sends, so that some wait."""
        undo = self.hold_up(server)
        if undo is None:
            return None
        event = self.record(what, server)
        waiting.wait(0.2)
        rows = self.ask(server, "SELECT %s(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'" % function)
        event.returned, event.detail = now(), "%d" % len(rows)
        return undo

    def pids(self, server, condition):
        return [pid for pid, in self.ask(server, "SELECT pid FROM pg_stat_activity WHERE " + condition)]

    def ask(self, server, query):
        """Nothing, if the server cannot answer now."""
        try:
            return server.sql(query) if server.is_up() and not server.is_paused else []
        except psycopg2.Error:
            return []

    def send(self, pids, number):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
