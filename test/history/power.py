"""Power cuts: a node whose directory is a file system in a file, which goes on with what the file held at a moment.

What PostgreSQL has written and the kernel has not yet is lost, as it is when the
power fails; what was flushed must be there. Mounting takes root.
"""
import os
import shutil
import signal
import subprocess

from cluster import Server, wait_until
from history import now

SIZE = "600M"


class PoweredServer(Server):
    image = None

    def make_room(self):
        self.image = self.data + ".img"
        subprocess.run(["truncate", "-s", SIZE, self.image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        os.mkdir(self.data)
        self.mount()

    def create(self):
        super().create()
        subprocess.run(["sync", "-f", self.data], check=True)  # the copy was nobody's to flush

    def mount(self):
        subprocess.run(["mount", "-o", "loop", self.image, self.data], check=True)

    def unmount(self):
        wait_until(lambda: subprocess.run(["umount", self.data], stderr=subprocess.DEVNULL).returncode == 0, "nobody is in %s" % self.data, 20)

    def cut_power(self):
        pids = self.signal(signal.SIGSTOP)
        cut = now()
        subprocess.run(["cp", "--sparse=always", self.image, self.image + ".cut"], check=True)
        self.kill_stopped(pids)
        self.killed = cut
        self.unmount()
        os.rename(self.image + ".cut", self.image)
        self.mount()

    def forget(self):
        self.unmount()
        os.unlink(self.image)
        shutil.rmtree(self.data)
