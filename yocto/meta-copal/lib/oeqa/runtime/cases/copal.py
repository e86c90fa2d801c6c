#
# SPDX-License-Identifier: Apache-2.0
#
"""What a Copal OS promises on a running device: `TEST_SUITES = "ping ssh systemd copal"`, `bitbake -c testimage copal-image-dev`."""

import json

from oeqa.core.decorator.depends import OETestDepends
from oeqa.runtime.case import OERuntimeTestCase


class CopalTest(OERuntimeTestCase):
    """Over SSH, so on copal-image-dev."""

    def run_well(self, command):
        """Runs a command that must exit 0; its output."""
        status, output = self.target.run(command)
        self.assertEqual(status, 0, f"{command}: {output}")
        return output

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_root_is_read_only_and_data_is_not(self):
        """The slot is never written; the data partition is there and can be."""
        self.assertIn("ro", self.run_well("findmnt -no OPTIONS /").split(","))
        self.assertIn("rw", self.run_well("findmnt -no OPTIONS /data").split(","))
        self.run_well("/etc/copal/health.d/10-data")

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_data_was_grown(self):
        """The data partition ends where the disk ends (within 8 MiB)."""
        part = self.run_well("readlink -f $(findmnt -no SOURCE /data)").strip()
        disk = "/dev/" + self.run_well(f"lsblk -ndo PKNAME {part}").strip()
        last = self.run_well(f"sfdisk --dump {disk} | grep '^{part} '")
        numbers = dict(word.split("=") for word in last.split(":", 1)[1].replace(" ", "").split(",") if "=" in word)
        end = int(numbers["start"]) + int(numbers["size"])
        sectors = int(self.run_well(f"blockdev --getsz {disk}"))
        self.assertLess(sectors - end, 8 * 2048)

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_os_json_names_what_runs(self):
        """The file is valid, names this machine, and the root is the partition of the booted slot."""
        config = json.loads(self.run_well("cat /etc/copal/os.json"))
        self.assertEqual(config["device_type"], self.tc.td["COPAL_DEVICE_TYPE"])
        words = dict(word.split("=", 1) for word in self.run_well("cat /proc/cmdline").split() if "=" in word)
        slot = words["copal.slot"]
        root = self.run_well("readlink -f $(findmnt -no SOURCE /)").strip()
        self.assertEqual(root, self.run_well(f"readlink -f {config['slots'][slot]['rootfs']}").strip())

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_agent_answers(self):
        """The agent runs, with its state on the data partition."""
        self.run_well("copal-agent os status")
        self.assertEqual(self.run_well("findmnt -no FSROOT /var/lib/copal").strip(), "/copal")

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_engine_keeps_its_data_apart(self):
        """Images are on the data partition, logs are bounded, containers outlive a restart of the engine."""
        info = json.loads(self.run_well("docker info --format '{{json .}}'"))
        self.assertEqual(info["DockerRootDir"], "/data/docker")
        self.assertEqual(info["LoggingDriver"], "local")
        self.assertTrue(info["LiveRestoreEnabled"])

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_watchdog_journal_and_clock(self):
        """A hang restarts, logs stay in bounds, and the clock is not in the past of the image."""
        self.assertNotIn("=0", self.run_well("systemctl show -p RuntimeWatchdogUSec"))
        self.assertIn("Storage=volatile", self.run_well("systemd-analyze cat-config systemd/journald.conf"))
        self.run_well("test $(date +%s) -ge $(stat -c %Y /usr/lib/clock-epoch)")
        self.run_well("systemctl is-active systemd-timesyncd")

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_nothing_failed(self):
        """No unit failed on the way up."""
        self.assertEqual(self.run_well("systemctl --failed --no-legend").strip(), "")
