"""A network that can be cut: a namespace for each node, joined by a bridge in ours.

No root is needed where users may make namespaces of their own (enter). Cuts
between nodes are made one way at a time, by a wrong link-layer address, so that
packets get lost without a word; clients, who are at the bridge, still reach
every node. unplug takes the cable out, for clients too. REPL_ML_OWN_NETWORK=no
does without.
"""
import os
import subprocess
import sys

ENTERED = "REPL_ML_OWN_NETWORK"
UNSHARE = ["unshare", "--user", "--map-current-user", "--keep-caps", "--net"] if os.geteuid() else ["unshare", "--net", "--mount"]
NOWHERE = 99


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def enter():
    """Starts this program again in a namespace of its own; where that cannot be, says why in a text."""
    if os.environ.get(ENTERED):
        return None if os.environ[ENTERED] == "1" else "not wanted"
    try:
        trial = subprocess.run([*UNSHARE, "ip", "link", "add", "trial", "type", "bridge"], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    if trial.returncode != 0:
        return trial.stderr.strip().split("\n")[-1] or "unshare failed"
    os.environ[ENTERED] = "1"
    sys.stdout.flush()
    os.execvp(UNSHARE[0], [*UNSHARE, sys.executable, *sys.argv])


def address(number):
    return "10.77.0.%d" % number


def mac(number):
    return "02:00:00:00:00:%02x" % number


class Network:
    def __init__(self):
        self.holders = {}  # number: a process that keeps the namespace
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "br0", "address", mac(254), "type", "bridge", "forward_delay", "0")
        run("ip", "link", "set", "br0", "up")
        run("ip", "addr", "add", address(254) + "/24", "dev", "br0")

    def add(self, number):
        """A namespace for one more node."""
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat >/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holder.stdout.readline()
        self.holders[number] = holder
        run("ip", "link", "add", "v%d" % number, "type", "veth", "peer", "name", "eth0", "address", mac(number), "netns", str(holder.pid))
        run("ip", "link", "set", "v%d" % number, "master", "br0", "up")
        self.inside(number, "link", "set", "lo", "up")
        self.inside(number, "addr", "add", address(number) + "/24", "dev", "eth0")
        self.inside(number, "link", "set", "eth0", "up")
        self.inside(number, "neigh", "replace", address(254), "lladdr", mac(254), "dev", "eth0", "nud", "permanent")
        run("ip", "neigh", "replace", address(number), "lladdr", mac(number), "dev", "br0", "nud", "permanent")
        for other in self.holders:
            self.mend(number, other)
            self.mend(other, number)

    def within(self, number):
        """The words in front of a command that runs it in the node's namespace."""
        return ["nsenter", "--net=/proc/%d/ns/net" % self.holders[number].pid, "--"]

    def inside(self, number, *command):
        run(*self.within(number), "ip", *command)

    def cut(self, sender, receiver):
        """What the one sends does not reach the other any more."""
        self.point(sender, receiver, mac(NOWHERE))

    def mend(self, sender, receiver):
        self.point(sender, receiver, mac(receiver))

    def point(self, sender, receiver, link_address):
        if sender != receiver:
            self.inside(sender, "neigh", "replace", address(receiver), "lladdr", link_address, "dev", "eth0", "nud", "permanent")

    def unplug(self, number):
        run("ip", "link", "set", "v%d" % number, "down")

    def plug(self, number):
        run("ip", "link", "set", "v%d" % number, "up")

    def close(self):
        for holder in self.holders.values():
            holder.stdin.close()
            holder.wait()
