"""A real Slurm of the tests' own, on this machine: munged, slurmctld and two slurmd.

Its two nodes are fake: both are this machine, under names and ports of their own, with more
cores than there are.  Their GPUs are fake as well: devices of another kind under that name.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = ("fakenode0", "fakenode1")
FAKE_GPUS = ("/dev/null", "/dev/zero")
START_S = 20.0
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its last run has expired: 5 s is the least.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
# A cluster that is quick with everything, so that the tests are.
KillWait=5
MinJobAge=2
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:{gpus}
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class Cluster:
    """The running daemons; ``SLURM_CONF`` leads every client to them."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        assert not missing, (
            f"the tests of launching run a real Slurm, and {', '.join(missing)} is not here: `make slurm` installs "
            "it on Debian and Ubuntu (as root: apt-get install slurmctld slurmd slurm-client munge)"
        )
        (self.folder / "state").mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(256))
        key.chmod(0o400)
        host = socket.gethostname()
        text = CONF.format(
            folder=self.folder,
            host=host,
            user=pwd.getpwuid(os.getuid()).pw_name,
            ports=_free_ports(3),
            nodes=NODES,
            gpus=len(FAKE_GPUS),
        )
        (self.folder / "slurm.conf").write_text(text)
        gpus = "".join(f"NodeName={','.join(NODES)} Name=gpu File={device}\n" for device in FAKE_GPUS)
        (self.folder / "gres.conf").write_text(gpus)
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            *(f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")),
            f"--socket={self.folder}/munge.sock",
        )
        self._until(lambda: (self.folder / "munge.sock").exists())
        self._daemon("slurmctld", "-D")
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node)
        self._until(lambda: self("sinfo", "--noheader", "--format=%D %T").strip() == "2 idle")

    def stop(self) -> None:
        """End every job, then the daemons; exactly those that were started."""
        self("scancel", f"--user={pwd.getpwuid(os.getuid()).pw_name}", check=False)
        deadline = time.monotonic() + 10
        while self("squeue", "--noheader", check=False) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __call__(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands; returns what it says."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While this lasts, jobs of the common partition wait."""
        self("scontrol", "update", "PartitionName=main", "State=DOWN")
        try:
            yield
        finally:
            self("scontrol", "update", "PartitionName=main", "State=UP")

    def logs(self) -> str:
        """The ends of the daemons' logs, for a failure's message."""
        return "\n".join(
            f"{path.name}: {line}"
            for path in sorted(self.folder.glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()[-10:]
        )

    def _daemon(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out.log", "ab") as out:
            environment = {**os.environ, **self.environment}
            self.processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))

    def _until(self, holds: object) -> None:
        assert callable(holds)
        deadline = time.monotonic() + START_S
        while True:
            try:
                if holds():
                    return
            except AssertionError:
                pass  # the controller does not answer yet
            assert time.monotonic() < deadline, f"Slurm did not start:\n{self.logs()}"
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
