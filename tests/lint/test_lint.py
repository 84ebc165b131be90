#!/usr/bin/env python3
"""Each check of tests/lint is shown failing on a planted violation, and passing without it."""

import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import format as lint_format  # noqa: E402
import sizes  # noqa: E402

CLEAN = "int x_get(void);\n"


class Tree(unittest.TestCase):
    """A small tree of its own for each test."""

    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        for path in ("base/log.h", "block/key.h", "tier/tier.h", "tier/host.h", "loop/loop.h", "move/store.h"):
            self.plant("daemon/" + path, CLEAN)
        self.plant("daemon/daemon.h", CLEAN)
        self.plant("proto/shm.h", CLEAN)
        self.plant("proto/wire.h", CLEAN)
        self.plant("include/kvbm.h", CLEAN)

    def plant(self, path, text):
        path = os.path.join(self.dir.name, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)

    def lint(self, check):
        done = subprocess.run(
            [sys.executable, os.path.join(HERE, check), "--root", self.dir.name], capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    def passes(self, check):
        code, text = self.lint(check)
        self.assertEqual(code, 0, text)

    def fails(self, check, *wanted):
        code, text = self.lint(check)
        self.assertEqual(code, 1, text)
        for words in wanted:
            self.assertIn(words, text)


class Layers(Tree):
    def allowed(self, path, include):
        self.plant(path, f"#include {include}\n")
        self.passes("layers.py")

    def refused(self, path, include, wanted):
        self.plant(path, f"#include <stdio.h>\n#include {include}\n")
        self.fails("layers.py", f"{path}:2", wanted)

    def test_what_the_table_allows(self):
        self.allowed("daemon/block/a.c", '"base/log.h"')
        self.allowed("daemon/block/b.c", '"proto/shm.h"')
        self.allowed("daemon/move/a.c", '"tier/tier.h"')
        self.allowed("daemon/server/a.c", '"move/store.h"')
        self.allowed("daemon/main.c", '"daemon.h"')
        self.allowed("daemon/tier/host.c", "<numa.h>")
        self.allowed("daemon/loop/loop.c", "<uv.h>")
        self.allowed("daemon/server/reply.c", '"kvbm.pb-c.h"')
        self.allowed("daemon/server/notify.c", "<systemd/sd-daemon.h>")
        self.allowed("client/client.c", '"proto/wire.h"')
        self.allowed("client/kvbmctl/simulate.c", '"block/key.h"')
        self.allowed("client/gpu.c", "<cuda.h>")
        self.allowed("daemon/tier/remote_s3.c", "<curl/curl.h>")
        self.allowed("tests/unit/block/test_a.c", '"daemon.h"')

    def test_base_includes_nothing(self):
        self.refused("daemon/base/x.c", '"block/key.h"', "base/ may not include block/key.h")

    def test_block_is_pure(self):
        self.refused("daemon/block/x.c", '"tier/tier.h"', "block/ may not include tier/tier.h")

    def test_block_sees_of_proto_only_shm(self):
        self.refused("daemon/block/x.c", '"proto/wire.h"', "block/ may not include proto/wire.h")

    def test_move_sees_of_tier_only_its_face(self):
        self.refused("daemon/move/x.c", '"tier/host.h"', "move/ may not include tier/host.h")

    def test_server_sees_of_tier_only_its_face(self):
        self.refused("daemon/server/x.c", '"tier/host.h"', "server/ may not include tier/host.h")

    def test_tier_knows_no_keys(self):
        self.refused("daemon/tier/x.c", '"block/key.h"', "tier/ may not include block/key.h")

    def test_longer_spelling_does_not_help(self):
        self.refused("daemon/tier/x.c", '"daemon/block/key.h"', "tier/ may not include block/key.h")
        self.refused("daemon/tier/x.c", '"../block/key.h"', "tier/ may not include block/key.h")

    def test_library_never_includes_the_daemon(self):
        self.refused("client/x.c", '"base/log.h"', "client/ may not include base/log.h")

    def test_header_that_does_not_exist_yet(self):
        self.refused("client/x.c", '"server/conn.h"', "client/ may not include server/conn.h")

    def test_kvbmctl_sees_no_server(self):
        self.refused("client/kvbmctl/x.c", '"loop/loop.h"', "kvbmctl/ may not include loop/loop.h")

    def test_examples_see_the_public_header_only(self):
        self.allowed("client/examples/a.c", "<kvbm.h>")
        self.refused("client/examples/x.c", '"proto/wire.h"', "examples/ may not include proto/wire.h")

    def test_daemon_h_in_the_root_only(self):
        self.refused("daemon/server/x.c", '"daemon.h"', "only the daemon's root")

    def test_unknown_folder(self):
        self.plant("daemon/stuff/x.c", "\n")
        self.fails("layers.py", "not in the layer table")

    def test_comments_do_not_include(self):
        self.allowed("daemon/base/x.c", '"base/log.h" /* not:\n#include "block/key.h"\n*/')

    def test_library_homes(self):
        for path, header in (
            ("daemon/server/x.c", "<uv.h>"),
            ("daemon/tier/x.c", "<liburing.h>"),
            ("daemon/tier/x.c", "<cuda.h>"),
            ("client/client.c", "<cuda_runtime.h>"),
            ("daemon/move/x.c", '"kvbm.pb-c.h"'),
            ("daemon/loop/x.c", "<numa.h>"),
            ("daemon/tier/x.c", "<systemd/sd-daemon.h>"),
            ("daemon/tier/nvme.c", "<curl/curl.h>"),
            ("daemon/server/y.c", "<hiredis/hiredis.h>"),
            ("daemon/base/x.c", "<check.h>"),
        ):
            with self.subTest(path=path, header=header):
                self.refused(path, header, "has its home in")
                self.plant(path, CLEAN)

    def test_pure_folders_read_no_clock(self):
        self.plant("daemon/block/x.c", "/* clock_now_ns() */\nlong x(void)\n{\n\treturn clock_now_ns();\n}\n")
        self.fails("layers.py", "daemon/block/x.c:4", "reads a clock")


def function(lines, params="void"):
    return f"static int x_long({params})\n{{\n" + "\tx();\n" * (lines - 3) + "}\n"


class Sizes(Tree):
    def test_at_the_limits(self):
        self.plant("daemon/block/a.c", "\n" * 800)
        self.plant("daemon/block/a.h", "\n" * 300)
        self.plant("daemon/block/b.c", function(100, "int a, int b, int c, int d, int (*e)(int, int), int f"))
        self.passes("sizes.py")

    def test_long_file(self):
        self.plant("daemon/block/a.c", "\n" * 801)
        self.fails("sizes.py", "daemon/block/a.c: file of 801 lines, limit 800")

    def test_long_header(self):
        self.plant("daemon/block/a.h", "\n" * 301)
        self.fails("sizes.py", "daemon/block/a.h: file of 301 lines, limit 300")

    def test_long_function(self):
        self.plant("daemon/block/a.c", function(101))
        self.fails("sizes.py", "daemon/block/a.c:x_long: function of 101 lines, limit 100")

    def test_many_parameters(self):
        self.plant("daemon/block/a.c", function(5, "int a, int b, int c, int d,\n int e, int f, int g"))
        self.fails("sizes.py", "daemon/block/a.c:x_long: params of 7 parameters, limit 6")

    def test_exemption_with_a_reason(self):
        self.plant("daemon/block/a.c", function(120))
        self.plant("tests/lint/exemptions", "function daemon/block/a.c:x_long 120 one switch over all verbs\n")
        self.passes("sizes.py")
        self.plant("daemon/block/a.c", function(121))
        self.fails("sizes.py", "limit 120")

    def test_exemption_without_a_reason(self):
        self.plant("daemon/block/a.c", function(120))
        self.plant("tests/lint/exemptions", "function daemon/block/a.c:x_long 120\n")
        self.fails("sizes.py", "KIND WHAT LIMIT REASON")

    def test_exemption_no_longer_needed(self):
        self.plant("tests/lint/exemptions", "file daemon/block/a.c 900 it was long once\n")
        self.fails("sizes.py", "needs no exemption")

    def test_what_is_a_function(self):
        text = """
#define WRAP(x) \\
	{ \\
		x; \\
	}
extern "C" {
static const struct s table[] = { { "}", f(1) }, };
enum { A, B };
int one(void)
{
	if (x) { y(); }
}
__attribute__((unused)) static struct s *two(int a, void (*f)(int, int))
{
	return (struct s){ .a = 1 };
}
START_TEST(three)
{
}
END_TEST
}
"""
        self.assertEqual([f[:2] for f in sizes.functions(text)], [("one", 0), ("two", 2), ("three", 0)])


class Names(Tree):
    def test_clean(self):
        self.plant("daemon/block/community.c", "/* a community, TODO(#12) */\n")
        self.passes("names.py")

    def test_drawers(self):
        for name in ("util.c", "misc.h", "common.py", "test_helpers.c", "utils/x.c"):
            with self.subTest(name=name):
                path = "daemon/base/" + name
                self.plant(path, "\n")
                self.fails("names.py", "is a drawer")
                os.unlink(os.path.join(self.dir.name, path))

    def test_marks(self):
        for text in ("/* TODO: later */", "/* FIXME */", "// XXX", "#if 0", "#define NDEBUG"):
            with self.subTest(text=text):
                self.plant("daemon/block/a.c", f"\n{text}\n")
                self.fails("names.py", "daemon/block/a.c:2")

    def test_typedef_of_a_struct(self):
        self.plant("daemon/block/a.h", "typedef struct block { int x; } block_t;\n")
        self.fails("names.py", "not a typedef")


@unittest.skipUnless(lint_format.program(), "no clang-format of the right version")
class Format(Tree):
    def test_clean(self):
        self.plant("daemon/block/a.c", "int a(int b)\n{\n\tif (b)\n\t\treturn 1;\n\treturn 0;\n}\n")
        self.passes("format.py")

    def test_brace_on_the_wrong_line(self):
        self.plant("daemon/block/a.c", "int a(int b) {\n\treturn b;\n}\n")
        self.fails("format.py", "daemon/block/a.c:1: not as .clang-format has it")

    def test_spaces_for_tabs(self):
        self.plant("daemon/block/a.c", "int a(int b)\n{\n        return b;\n}\n")
        self.fails("format.py", "daemon/block/a.c:3")


if __name__ == "__main__":
    unittest.main()
