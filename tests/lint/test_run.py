#!/usr/bin/env python3
"""The test runner itself: what it counts, and that it cannot pass when it should not."""

import os
import subprocess
import tempfile
import unittest

RUN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "run.sh")


class Run(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.programs = []

    def program(self, body):
        path = os.path.join(self.dir.name, f"test_{len(self.programs)}")
        with open(path, "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\n" + body + "\n")
        os.chmod(path, 0o755)
        self.programs.append(path)

    def run_it(self, *flags, totals=None):
        env = {k: v for k, v in os.environ.items() if k not in ("KVBM_TOTALS", "MAKEFLAGS", "MAKELEVEL")}
        if totals:
            env["KVBM_TOTALS"] = totals
        logs = os.path.join(self.dir.name, "log")
        done = subprocess.run(
            [RUN, "-n", "x", "-l", logs, *flags, *self.programs], capture_output=True, text=True, env=env
        )
        return done.returncode, done.stdout.splitlines()[-1], done.stdout

    def gives(self, code, line, *flags):
        got_code, got_line, text = self.run_it(*flags)
        self.assertEqual((got_code, got_line), (code, line), text)

    def test_adds_up(self):
        self.program("echo '100%: Checks: 5, Failures: 0, Errors: 0'; echo '100%: Checks: 2, Failures: 0, Errors: 0'")
        self.program("echo '=== 7 passed, 2 skipped in 0.1s ==='")
        self.program("echo 'Ran 3 tests in 1.0s'; echo; echo 'OK (skipped=1)'")
        self.program("echo hello")
        self.program("echo no device; exit 77")
        self.gives(0, "17 passed, 0 failed, 4 skipped")

    def test_check_failures(self):
        self.program("echo '60%: Checks: 5, Failures: 1, Errors: 1'; exit 1")
        self.gives(1, "3 passed, 2 failed, 0 skipped")

    def test_unittest_failures(self):
        self.program("echo 'Ran 5 tests in 1.0s'; echo; echo 'FAILED (failures=1, errors=2)'; exit 1")
        self.gives(1, "2 passed, 3 failed, 0 skipped")

    def test_failures_that_the_program_forgot_to_return(self):
        self.program("echo '60%: Checks: 5, Failures: 2, Errors: 0'; exit 0")
        self.gives(1, "3 passed, 2 failed, 0 skipped")

    def test_dies_after_its_summary(self):
        self.program("echo '100%: Checks: 5, Failures: 0, Errors: 0'; kill -SEGV $$")
        self.gives(1, "5 passed, 1 failed, 0 skipped")

    def test_output_of_a_failure_is_shown(self):
        self.program("echo the reason; exit 3")
        code, _, text = self.run_it()
        self.assertEqual(code, 1)
        self.assertIn("the reason", text)

    def test_timeout(self):
        self.program("sleep 30")
        self.gives(1, "0 passed, 1 failed, 0 skipped", "-t", "1")

    def test_missing_program(self):
        self.programs.append(os.path.join(self.dir.name, "nowhere"))
        self.gives(1, "0 passed, 1 failed, 0 skipped")

    def test_nothing_ran(self):
        self.gives(1, "0 passed, 0 failed, 0 skipped")

    def test_all_skipped(self):
        self.program("exit 77")
        self.gives(1, "0 passed, 0 failed, 1 skipped")
        self.gives(0, "0 passed, 0 failed, 1 skipped", "-z")

    def test_ran_no_test(self):
        self.program("echo 'Ran 0 tests in 0.0s'; echo; echo OK")
        self.gives(1, "0 passed, 1 failed, 0 skipped")

    def test_totals_of_several_suites(self):
        totals = os.path.join(self.dir.name, "totals")
        self.program("exit 0")
        self.run_it(totals=totals)
        self.program("exit 1")
        self.run_it(totals=totals)
        with open(totals, encoding="utf-8") as f:
            self.assertEqual(f.read(), "x 1 0 0\nx 1 1 0\n")

    def test_suites_through_make(self):
        makefile = os.path.join(self.dir.name, "Makefile")
        with open(makefile, "w", encoding="utf-8") as f:
            f.write(f"good:\n\t@{RUN} -n good -l {self.dir.name}/log /bin/true\nbad:\n\t@false\n")
        for targets, want in ((["good"], (0, "1 passed, 0 failed, 0 skipped")), (["good", "bad"], (1, "1 passed, 1 failed, 0 skipped"))):
            env = {k: v for k, v in os.environ.items() if k not in ("KVBM_TOTALS", "MAKEFLAGS", "MAKELEVEL")}
            done = subprocess.run([RUN, "-s", f"make -f {makefile}", *targets], capture_output=True, text=True, env=env)
            self.assertEqual((done.returncode, done.stdout.splitlines()[-1]), want, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
