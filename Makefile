# kvbmd: build, test, install.  `make help` lists the targets.
#
# One non-recursive makefile.  Sources are found by wildcard; which folder a file is in decides what it becomes:
#   daemon/*/*.c daemon/*.c -> libkvbmd.a      daemon/main.c -> kvbmd
#   client/*.c proto/*.c    -> libkvbm.so, .a  client/kvbmctl/*.c -> kvbmctl, .a  client/examples/*.c -> examples/
#   client/gpu.c            -> libkvbm-cuda.so, and examples/paged_engine, with the CUDA toolkit only
#   client/python/*.c, libkvbm's, client/python/kvbmd/* -> python/kvbmd/
#   tests/{unit/*,integration,gpu}/test_*.c, tests/fuzz/fuzz_*.c, tests/bench/bench_*.c -> one program each
#   tests/sim/*.c -> one program               tests/lib/*.c -> what the tests share
#   tests/fakecuda/*.c, daemon/gpu/gather.cu -> fakecuda/libcuda.so.1, with the CUDA toolkit only, as tests/gpu/
#
# Nothing here asks pkg-config or the compiler anything while the makefile is read: on a fresh machine `make check` and
# `make demo` first install what is missing (packaging/deps.sh) and then start make again.

VERSION := $(or $(shell sed -n 's/^.define KVBM_VERSION "\(.*\)"/\1/p' include/kvbm_version.h 2>/dev/null),0)
SOVERSION := $(firstword $(subst ., ,$(VERSION)))

# Knobs ---------------------------------------------------------------------------------------------------------------

V ?= 0
SAN ?=
BUILD ?= build
WERROR ?= 0
CUDA ?= auto
CUDA_HOME ?= /usr/local/cuda
SEEDS ?= 10000
FUZZ_SECONDS ?= 60
RACE_SECONDS ?= 60
BENCH ?=
VLLM_VENV ?= $(BUILD)/vllm
prefix ?= /usr/local
DESTDIR ?=

ifeq ($(origin CC),default)
CC := gcc
endif
AR ?= ar
PKG_CONFIG ?= pkg-config
PROTOC_C ?= protoc-c
CLANG ?= clang
PYTHON ?= python3

bindir ?= $(prefix)/bin
libdir ?= $(prefix)/lib
includedir ?= $(prefix)/include
mandir ?= $(prefix)/share/man
docdir ?= $(prefix)/share/doc/kvbmd
unitdir ?= $(prefix)/lib/systemd/system
sysconfdir ?= /etc

ifeq ($(MAKELEVEL),0)
ifeq ($(filter -j% --jobs%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
endif

ifeq ($(SAN),)
B := $(BUILD)
else ifeq ($(SAN),address)
B := $(BUILD)-asan
SAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
else ifeq ($(SAN),thread)
B := $(BUILD)-tsan
# gcc's ThreadSanitizer does not model fences and says so at each one (clang has no such warning).
SAN_FLAGS := -fsanitize=thread -fno-omit-frame-pointer $(if $(findstring clang,$(CC)),,-Wno-tsan)
else ifeq ($(SAN),fuzzer)
B := $(BUILD)-fuzz
SAN_FLAGS := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
else
$(error SAN is address or thread (or nothing), not "$(SAN)")
endif

# The toolkit: headers and nvcc, both or nothing.  CUDA=1 wants it, CUDA=0 (or no) does without, auto takes it if it is there.
TOOLKIT := $(if $(and $(wildcard $(CUDA_HOME)/include/cuda.h),$(wildcard $(CUDA_HOME)/bin/nvcc)),$(CUDA_HOME))
ifneq ($(filter 0 no,$(CUDA)),)
TOOLKIT :=
else ifeq ($(CUDA),auto)
else ifneq ($(CUDA),1)
$(error CUDA is auto, 1 or 0, not "$(CUDA)")
else ifeq ($(TOOLKIT),)
$(error CUDA=1, but no include/cuda.h and bin/nvcc in CUDA_HOME=$(CUDA_HOME))
endif

Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@printf '  %-6s %s\n' $(1) $(2))

# Flags ---------------------------------------------------------------------------------------------------------------

PACKAGES := libuv libprotobuf-c numa libsystemd inih jansson libxxhash libisal liburing

# Asked once, when the first recipe needs it.
PKG_CFLAGS = $(eval PKG_CFLAGS := $$(shell $(PKG_CONFIG) --cflags $(PACKAGES)))$(PKG_CFLAGS)
PKG_LIBS = $(eval PKG_LIBS := $$(shell $(PKG_CONFIG) --libs $(PACKAGES)))$(PKG_LIBS)
CHECK_CFLAGS = $(eval CHECK_CFLAGS := $$(shell $(PKG_CONFIG) --cflags check))$(CHECK_CFLAGS)
CHECK_LIBS = $(eval CHECK_LIBS := $$(shell $(PKG_CONFIG) --libs check))$(CHECK_LIBS)
PY_CFLAGS = $(eval PY_CFLAGS := $$(shell packaging/python-cflags.sh $(PYTHON)))$(PY_CFLAGS)
PROTO_LIBS = $(eval PROTO_LIBS := $$(shell $(PKG_CONFIG) --libs libprotobuf-c))$(PROTO_LIBS)

WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wswitch-enum \
	-Wunused-result $(if $(filter 1 yes,$(WERROR)),-Werror)
CFLAGS ?= -O2 -g
# NDEBUG is never defined: base/assert.h refuses to compile with it.
BASE_FLAGS := -std=gnu11 -D_GNU_SOURCE -I. -Idaemon -Iinclude -I$(B)/gen -pthread \
	$(SAN_FLAGS) $(if $(TOOLKIT),-isystem $(TOOLKIT)/include)
LINK_FLAGS = $(SAN_FLAGS) -pthread -Wl,--as-needed $(LDFLAGS)
COMPILE = $(CC) $(BASE_FLAGS) $(CFLAGS) -MMD -MP

# Sources -------------------------------------------------------------------------------------------------------------

GPU_UNUSED := $(if $(and $(TOOLKIT),$(wildcard daemon/gpu/gpu_cuda.c)),daemon/gpu/gpu_none.c,$(wildcard daemon/gpu/gpu_cuda*.c))
DAEMON_SRC := $(filter-out daemon/main.c $(GPU_UNUSED),$(wildcard daemon/*.c daemon/*/*.c))
MAIN_SRC := $(wildcard daemon/main.c)
PROTO_SRC := $(wildcard proto/*.c)
CLIENT_SRC := $(filter-out client/gpu.c,$(wildcard client/*.c))
CTL_SRC := $(wildcard client/kvbmctl/*.c)
CUDA_CLIENT_SRC := $(if $(TOOLKIT),$(wildcard client/gpu.c))
EXAMPLE_SRC := $(filter-out $(if $(CUDA_CLIENT_SRC),,client/examples/paged_engine.c),$(wildcard client/examples/*.c))
PY_SRC := $(wildcard client/python/*.c)
PY_FILES := $(wildcard client/python/kvbmd/*.py client/python/kvbmd/*.pyi client/python/kvbmd/py.typed)
PY_VLLM_FILES := $(wildcard client/python/kvbmd/vllm/*.py)
TESTLIB_SRC := $(wildcard tests/lib/*.c)
UNIT_SRC := $(wildcard tests/unit/*/test_*.c)
INTEGRATION_SRC := $(wildcard tests/integration/test_*.c)
GPU_TEST_SRC := $(if $(TOOLKIT),$(wildcard tests/gpu/test_*.c))
GPU_BENCH_SRC := $(if $(TOOLKIT),$(wildcard tests/gpu/bench_*.c))
GPU_TEST_LIB_SRC := $(if $(TOOLKIT),$(filter-out $(GPU_TEST_SRC) $(GPU_BENCH_SRC),$(wildcard tests/gpu/*.c)))
FAKECUDA_SRC := $(if $(TOOLKIT),$(wildcard tests/fakecuda/*.c))
SIM_SRC := $(wildcard tests/sim/*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_MAIN := $(wildcard tests/fuzz/main.c)
BENCH_SRC := $(wildcard tests/bench/bench_*.c)
BENCH_LIB_SRC := $(filter-out $(BENCH_SRC),$(wildcard tests/bench/*.c))
SYSTEMD_TESTS := $(wildcard tests/systemd/test_*.sh)
# Under a sanitizer valgrind has no place, and what pip builds is not instrumented.
PYTHON_TESTS := $(filter-out $(if $(SAN),%/test_leaks.py %/test_package.py),$(wildcard tests/python/test_*.py))
TORCH_TESTS := $(wildcard tests/python/with_torch/test_*.py)
LINT_TESTS := $(addprefix tests/lint/,layers.py sizes.py names.py format.py test_lint.py test_run.py)

obj = $(patsubst %.c,$(B)/obj/%.o,$(1))
pic = $(patsubst %.c,$(B)/pic/%.o,$(1))
bin = $(patsubst %.c,$(B)/%,$(1))

PB_C := $(if $(wildcard proto/kvbm.proto),$(B)/gen/kvbm.pb-c.c)
PB_H := $(PB_C:.c=.h)
PB_OBJ := $(if $(PB_C),$(B)/pic/gen/kvbm.pb-c.o)
LIBD := $(B)/libkvbmd.a
LIBC := $(B)/libkvbm.a
LIBT := $(B)/libtest.a
LIBK := $(if $(CTL_SRC),$(B)/libkvbmctl.a)
SONAME := libkvbm.so.$(SOVERSION)
SOFILE := libkvbm.so.$(VERSION)
CUDA_SONAME := libkvbm-cuda.so.$(SOVERSION)
CUDA_SOFILE := libkvbm-cuda.so.$(VERSION)

UNIT_BIN := $(call bin,$(UNIT_SRC))
INTEGRATION_BIN := $(call bin,$(INTEGRATION_SRC))
GPU_TEST_BIN := $(call bin,$(GPU_TEST_SRC))
GPU_BENCH_BIN := $(call bin,$(GPU_BENCH_SRC))
FAKECUDA := $(if $(FAKECUDA_SRC),$(B)/fakecuda/libcuda.so.1)
SIM_BIN := $(if $(SIM_SRC),$(B)/tests/sim/sim)
FUZZ_BIN := $(call bin,$(FUZZ_SRC))
BENCH_BIN := $(call bin,$(BENCH_SRC))
EXAMPLE_BIN := $(patsubst client/examples/%.c,$(B)/examples/%,$(EXAMPLE_SRC))
PROGRAMS := $(if $(MAIN_SRC),$(B)/kvbmd) $(if $(CTL_SRC),$(B)/kvbmctl) $(if $(CLIENT_SRC),$(B)/libkvbm.so) \
	$(if $(CUDA_CLIENT_SRC),$(B)/libkvbm-cuda.so) $(EXAMPLE_BIN)
TEST_OBJ := $(call obj,$(UNIT_SRC) $(INTEGRATION_SRC) $(GPU_TEST_SRC) $(GPU_BENCH_SRC) $(GPU_TEST_LIB_SRC) $(SIM_SRC) $(FUZZ_SRC) $(FUZZ_MAIN) $(BENCH_SRC) \
	$(BENCH_LIB_SRC) $(TESTLIB_SRC))
ALL_OBJ := $(call obj,$(DAEMON_SRC) $(MAIN_SRC) $(CTL_SRC) $(EXAMPLE_SRC)) $(call pic,$(CLIENT_SRC) $(CUDA_CLIENT_SRC) $(PROTO_SRC) $(PY_SRC) $(FAKECUDA_SRC)) \
	$(PB_OBJ) $(TEST_OBJ)

# What the test programs are told; see tests/README.md.
export KVBM_BUILD = $(abspath $(B))
export KVBM_SOURCE = $(CURDIR)
export SIM_SEEDS = $(SEEDS)
VLLM_ENV = OMP_NUM_THREADS=1 KVBM_PYTHON="$(abspath $(VLLM_VENV))/bin/python" KVBM_VLLM_SITE="$(abspath $(B))/vllm-site" \
	KVBM_VLLM_PYTHON="$(abspath $(VLLM_VENV))/bin/python" KVBM_VLLM_BEFORE="$(abspath $(B))/vllm-0.29.0"
PY_ENV = PATH="$(abspath $(B))/venv/bin:$$PATH" PYTHONPATH="$(abspath $(B))/python" PYTHONDONTWRITEBYTECODE=1 \
	$(if $(filter address,$(SAN)),LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0)
RUN = tests/run.sh -l $(B)/log $(if $(filter thread,$(SAN)),-a)

SANITIZER := $(wildcard $(TOOLKIT)/bin/compute-sanitizer)

# Targets -------------------------------------------------------------------------------------------------------------

.PHONY: all python demo check check-unit check-sim check-integration check-race check-python check-torch check-vllm check-gpu \
	check-gpu-standin lint lint-sizes format bench bench-gpu fuzz tests deps install dist help clean fuzz-run FORCE
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:

all: $(PROGRAMS) ## build kvbmd, kvbmctl and libkvbm.so into build/ (the default)

python: $(if $(PY_SRC),$(B)/python/built) ## the Python package, for PYTHONPATH=build/python

demo: ## install what is missing, build, and show several processes sharing one cache
	@packaging/deps.sh
	@+$(MAKE) --no-print-directory all
	@packaging/demo.sh $(B)

check: ## install what is missing, then lint and every test that needs no device
	@packaging/deps.sh
	@+tests/run.sh -s '$(MAKE) --no-print-directory' lint check-unit check-sim check-integration check-gpu-standin check-python

check-unit: $(UNIT_BIN) ## one file each, no files, no sockets
	@$(if $(UNIT_BIN),$(RUN) -n unit $(UNIT_BIN),echo 'no unit tests')

check-sim: $(SIM_BIN) ## core, fake tiers, virtual time, seeded faults (SEEDS=n)
	@$(if $(SIM_BIN),$(RUN) -n sim -t 900 $(SIM_BIN),echo 'no simulator')

check-integration: all $(INTEGRATION_BIN) ## a real kvbmd and real clients, and a real systemd
	@$(if $(INTEGRATION_BIN),$(RUN) -n integration -t 600 $(SYSTEMD_TESTS) $(INTEGRATION_BIN),echo 'no integration tests')

check-race: all $(B)/tests/integration/test_race ## RACE_SECONDS of clients and eviction over the same few slots
	@KVBM_RACE_SECONDS=$(RACE_SECONDS) $(RUN) -n race -t $$(($(RACE_SECONDS) + 180)) $(B)/tests/integration/test_race

check-python: all python $(FAKECUDA) ## the Python package
	@tests/python/numpy.sh $(PYTHON) $(B)
	@$(if $(PYTHON_TESTS),$(PY_ENV) $(RUN) -n python -t 600 $(PYTHON_TESTS),echo 'no python tests')

check-torch: all python ## the Python package with PyTorch (PYTHON=an interpreter that has torch and numpy)
	@KVBM_PYTHON='$(PYTHON)' OMP_NUM_THREADS=1 $(PY_ENV) $(RUN) -n torch -t 600 $(TORCH_TESTS)

check-vllm: all python ## the connector in the real vLLM on the CPU, and PyTorch: fetches 430 MB once, or VLLM_VENV=dir that has it
	@tests/python/vllm/prepare.sh $(PYTHON) $(B) $(VLLM_VENV); case $$? in \
		0) $(PY_ENV) $(VLLM_ENV) $(RUN) -n vllm -j 1 -t 840 tests/python/vllm/test_engines.py $(TORCH_TESTS) ;; \
		77) $(PY_ENV) $(RUN) -n vllm -z tests/python/vllm/test_engines.py ;; \
		*) exit 1 ;; esac

check-gpu-standin: all $(GPU_TEST_BIN) $(FAKECUDA) ## the gpu suites on the stand-in driver (with the CUDA toolkit)
	@$(if $(GPU_TEST_BIN),LD_LIBRARY_PATH=$(abspath $(B)/fakecuda) $(RUN) -n gpu -t 600 $(GPU_TEST_BIN),echo 'skipped: no CUDA toolkit, so no gpu suites')

check-gpu: all python $(GPU_TEST_BIN) ## the same suites, and Python's, on a device; skipped without one
	@$(if $(GPU_TEST_BIN),CK_FORK=no KVBM_CUDA=real $(PY_ENV) $(RUN) -n gpu -j 1 -z $(GPU_TEST_BIN) tests/python/test_cuda.py,echo 'skipped: no CUDA toolkit, so no gpu suites')
	@$(if $(and $(GPU_TEST_BIN),$(SANITIZER)),CK_FORK=no $(RUN) -n gpu-sanitizer -j 1 -z -w '$(SANITIZER) --error-exitcode 1' \
		$(GPU_TEST_BIN),echo 'skipped: no compute-sanitizer')

lint: ## layers, sizes, names, format, and the tests of these checks
	@$(RUN) -n lint $(LINT_TESTS)

lint-sizes: ## the limits on files, functions and parameters, with the nearest misses
	@tests/lint/sizes.py --top 10

format: ## rewrite all C files (or FILES) as .clang-format has it
	@tests/lint/format.py --fix $(FILES)

bench: all $(BENCH_BIN) $(if $(findstring P18,$(BENCH)),python) ## figures as ratios to a limit measured in the same run (BENCH=P1,P3: only these)
	@$(if $(findstring P18,$(BENCH)),tests/python/vllm/prepare.sh $(PYTHON) $(B) $(VLLM_VENV))
	@BENCH='$(BENCH)' $(if $(findstring P18,$(BENCH)),$(PY_ENV) $(VLLM_ENV)) tests/bench/run.py $(BENCH_BIN) $(if $(findstring P18,$(BENCH)),tests/bench/first_token.py)

bench-gpu: all $(GPU_BENCH_BIN) ## P16 on a device, with its name
	@$(if $(GPU_BENCH_BIN),BENCH='$(BENCH)' tests/bench/run.py $(GPU_BENCH_BIN),echo 'skipped: no CUDA toolkit')

fuzz: ## FUZZ_SECONDS of each fuzz target (clang)
	@+$(MAKE) --no-print-directory CC='$(CLANG)' SAN=fuzzer fuzz-run

fuzz-run: $(FUZZ_BIN)
	@$(if $(FUZZ_BIN),FUZZ_SECONDS=$(FUZZ_SECONDS) $(RUN) -n fuzz -t $$(($(FUZZ_SECONDS) + 120)) -f $(FUZZ_BIN),echo 'no fuzz targets')

tests: $(UNIT_BIN) $(SIM_BIN) $(INTEGRATION_BIN) $(GPU_TEST_BIN) $(BENCH_BIN) ## build all test programs, run none

deps: ## install the Debian packages that are missing (as root, or through sudo)
	@packaging/deps.sh

install: all ## into $(DESTDIR)$(prefix)
	install -d $(DESTDIR)$(bindir) $(DESTDIR)$(libdir)/pkgconfig $(DESTDIR)$(includedir)
	install -m 755 $(wildcard $(B)/kvbmd $(B)/kvbmctl) $(DESTDIR)$(bindir)
	install -m 755 $(B)/$(SOFILE) $(DESTDIR)$(libdir)
	ln -sf $(SOFILE) $(DESTDIR)$(libdir)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(libdir)/libkvbm.so
	$(if $(CUDA_CLIENT_SRC),install -m 755 $(B)/$(CUDA_SOFILE) $(DESTDIR)$(libdir))
	$(if $(CUDA_CLIENT_SRC),ln -sf $(CUDA_SOFILE) $(DESTDIR)$(libdir)/$(CUDA_SONAME))
	$(if $(CUDA_CLIENT_SRC),ln -sf $(CUDA_SONAME) $(DESTDIR)$(libdir)/libkvbm-cuda.so)
	install -m 644 include/*.h $(DESTDIR)$(includedir)
	$(foreach pc,kvbm $(if $(CUDA_CLIENT_SRC),kvbm-cuda),sed -e 's|@prefix@|$(prefix)|; s|@libdir@|$(libdir)|; s|@includedir@|$(includedir)|; s|@version@|$(VERSION)|' \
		packaging/$(pc).pc.in >$(DESTDIR)$(libdir)/pkgconfig/$(pc).pc &&) true
	$(if $(wildcard conf/kvbmd.conf),install -d $(DESTDIR)$(sysconfdir)/kvbmd)
	$(if $(wildcard conf/kvbmd.conf),test -e $(DESTDIR)$(sysconfdir)/kvbmd/kvbmd.conf || \
		install -m 644 conf/kvbmd.conf $(DESTDIR)$(sysconfdir)/kvbmd)
	$(if $(wildcard systemd/*.service),install -d $(DESTDIR)$(unitdir))
	$(foreach unit,$(wildcard systemd/*.service systemd/*.socket),sed 's|@bindir@|$(bindir)|; s|/usr/bin/kvbm|$(bindir)/kvbm|' \
		$(unit) >$(DESTDIR)$(unitdir)/$(notdir $(unit)) &&) true
	$(if $(wildcard systemd/*.sysusers),install -D -m 644 systemd/kvbmd.sysusers $(DESTDIR)$(prefix)/lib/sysusers.d/kvbmd.conf)
	$(foreach page,$(wildcard packaging/man/*.[1-9]),install -D -m 644 $(page) \
		$(DESTDIR)$(mandir)/man$(subst .,,$(suffix $(page)))/$(notdir $(page)) &&) true
	install -D -m 644 LICENSE $(DESTDIR)$(docdir)/LICENSE
	$(if $(DESTDIR),,-ldconfig)

dist: ## a tarball of the last commit
	@mkdir -p $(B)
	git archive --format=tar.gz --prefix=kvbmd-$(VERSION)/ -o $(B)/kvbmd-$(VERSION).tar.gz HEAD

clean: ## remove what this configuration built
	rm -rf $(B)

help: ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  V=1 shows commands; SAN=address|thread; CC=clang; WERROR=1; BUILD=dir; CUDA=auto|1|0 CUDA_HOME=dir; SEEDS=n; FUZZ_SECONDS=n; RACE_SECONDS=n;'
	@echo '  PYTHON=program; BENCH=P1,..; prefix=dir DESTDIR=dir'

# Rules ---------------------------------------------------------------------------------------------------------------

# Objects depend on the flags they were made with.
$(B)/flags: FORCE
	@mkdir -p $(B)
	@printf '%s\n' '$(subst ','\'',$(CC) $(BASE_FLAGS) $(CFLAGS) $(WARNINGS) $(LDFLAGS))' | cmp -s - $@ || \
		printf '%s\n' '$(subst ','\'',$(CC) $(BASE_FLAGS) $(CFLAGS) $(WARNINGS) $(LDFLAGS))' >$@

$(B)/gen/%.pb-c.c $(B)/gen/%.pb-c.h: proto/%.proto
	$(call say,PROTOC,$<)
	$(Q)mkdir -p $(B)/gen && $(PROTOC_C) --proto_path=proto --c_out=$(B)/gen $<

$(ALL_OBJ): $(B)/flags | $(PB_H)

$(B)/obj/tests/%.o: tests/%.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(COMPILE) $(WARNINGS) $(PKG_CFLAGS) $(CHECK_CFLAGS) -c -o $@ $<

$(B)/obj/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(COMPILE) $(WARNINGS) $(PKG_CFLAGS) -c -o $@ $<

$(B)/pic/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(COMPILE) $(WARNINGS) -fPIC -fvisibility=hidden -c -o $@ $<

# The kernel, for the devices we know, and as PTX for later ones; embedded by gpu_cuda_fatbin.c.
GATHER_CODE := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_100,code=sm_100 \
	-gencode arch=compute_80,code=compute_80

$(B)/gen/gather.fatbin: daemon/gpu/gather.cu
	$(call say,NVCC,$<)
	$(Q)mkdir -p $(@D) && $(TOOLKIT)/bin/nvcc -fatbin -O3 $(GATHER_CODE) -o $@ $<

$(B)/obj/daemon/gpu/gpu_cuda_fatbin.o: $(B)/gen/gather.fatbin
$(B)/obj/daemon/gpu/gpu_cuda_fatbin.o: private BASE_FLAGS += -DGATHER_FATBIN='"$(abspath $(B)/gen/gather.fatbin)"'

# The stand-in driver: its interface is CUDA's, so everything in it is visible.
$(B)/pic/tests/fakecuda/%.o: tests/fakecuda/%.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(COMPILE) $(WARNINGS) -fPIC -c -o $@ $<

# Not under ThreadSanitizer: word by word it would take minutes, and all of it runs under one lock.
$(B)/pic/tests/fakecuda/gather.o: daemon/gpu/gather.cu tests/fakecuda/shim.h
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) -x c++ -std=gnu++14 -fno-exceptions -fno-rtti -fPIC \
		$(filter-out -fsanitize=thread,$(SAN_FLAGS)) $(CFLAGS) -include tests/fakecuda/shim.h -c -o $@ $<

$(B)/fakecuda/libcuda.so.1: $(call pic,$(FAKECUDA_SRC)) $(B)/pic/tests/fakecuda/gather.o
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LINK_FLAGS) -shared -Wl,-soname,libcuda.so.1 $(if $(SAN),,-Wl$(,)-z$(,)defs) -o $@ $^

# Generated: not ours to warn about.
$(B)/pic/gen/%.o: $(B)/gen/%.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(COMPILE) -w -fPIC -fvisibility=hidden -c -o $@ $<

define archive
$(call say,AR,$@)
$(Q)rm -f $@ && $(AR) rcs $@ $^
endef

# Both archives carry proto/ and the generated code, because both ends speak the protocol.
$(LIBD): $(call obj,$(DAEMON_SRC)) $(call pic,$(PROTO_SRC)) $(PB_OBJ)
	$(archive)

$(LIBC): $(call pic,$(CLIENT_SRC) $(PROTO_SRC)) $(PB_OBJ)
	$(archive)

$(LIBT): $(call obj,$(TESTLIB_SRC))
	$(archive)

# All of the command line but main.c, so that tests reach its parts.
$(B)/libkvbmctl.a: $(call obj,$(filter-out client/kvbmctl/main.c,$(CTL_SRC)))
	$(archive)

MAP := $(wildcard client/libkvbm.map)

$(B)/$(SOFILE): $(call pic,$(CLIENT_SRC) $(PROTO_SRC)) $(PB_OBJ) $(MAP)
	$(call say,LD,$@)
	$(Q)$(CC) $(LINK_FLAGS) -shared -Wl,-soname,$(SONAME) $(if $(MAP),-Wl$(,)--version-script=$(MAP)) \
		$(if $(SAN),,-Wl$(,)-z$(,)defs) -o $@ $(filter %.o,$^) $(PROTO_LIBS)

, := ,

$(B)/libkvbm.so: $(B)/$(SOFILE)
	$(Q)ln -sf $(SOFILE) $(B)/$(SONAME) && ln -sf $(SONAME) $@

# Its own library, because it needs the toolkit's headers; it links no library of CUDA's.
$(B)/$(CUDA_SOFILE): $(call pic,$(CUDA_CLIENT_SRC)) $(B)/libkvbm.so
	$(call say,LD,$@)
	$(Q)$(CC) $(LINK_FLAGS) -shared -Wl,-soname,$(CUDA_SONAME) $(if $(SAN),,-Wl$(,)-z$(,)defs) -o $@ \
		$(filter %.o,$^) -L$(B) -lkvbm -Wl,-rpath,'$$ORIGIN'

$(B)/libkvbm-cuda.so: $(B)/$(CUDA_SOFILE)
	$(Q)ln -sf $(CUDA_SOFILE) $(B)/$(CUDA_SONAME) && ln -sf $(CUDA_SONAME) $@

$(B)/kvbmd: $(call obj,$(MAIN_SRC)) $(LIBD)
	$(call say,LD,$@)
	$(Q)$(CC) $(LINK_FLAGS) -o $@ $^ $(PKG_LIBS) -lm

$(B)/kvbmctl: $(call obj,client/kvbmctl/main.c) $(LIBK) $(LIBC) $(LIBD)
	$(call say,LD,$@)
	$(Q)$(CC) $(LINK_FLAGS) -o $@ $^ $(PKG_LIBS) -lm

$(B)/examples/paged_engine: private EXAMPLE_LIBS := -lkvbm-cuda
$(B)/examples/paged_engine: $(if $(CUDA_CLIENT_SRC),$(B)/libkvbm-cuda.so)

$(B)/examples/%: $(B)/obj/client/examples/%.o $(B)/libkvbm.so
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LINK_FLAGS) -o $@ $< -L$(B) $(EXAMPLE_LIBS) -lkvbm -Wl,-rpath,'$$ORIGIN/..'

# Without Python.h there is no extension, and its tests are skipped.
$(B)/pic/client/python/%.o: client/python/%.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(COMPILE) $(WARNINGS) $(PY_CFLAGS) $(if $(CUDA_CLIENT_SRC),-DKVBM_HAS_CUDA) -fPIC -fvisibility=hidden -c -o $@ $<

$(B)/python/kvbmd/_kvbm.abi3.so: $(call pic,$(PY_SRC) $(CLIENT_SRC) $(CUDA_CLIENT_SRC) $(PROTO_SRC)) $(PB_OBJ) client/python/_kvbm.map
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LINK_FLAGS) -shared -Wl,--version-script=client/python/_kvbm.map -o $@ $(filter %.o,$^) $(PROTO_LIBS)

$(B)/python/built: $(PY_FILES) $(PY_VLLM_FILES) $(call pic,$(CLIENT_SRC) $(PROTO_SRC)) $(PY_SRC) $(wildcard client/python/*.h) $(PB_OBJ)
	$(Q)mkdir -p $(@D)/kvbmd/vllm && cp $(PY_FILES) $(@D)/kvbmd/ && cp $(PY_VLLM_FILES) $(@D)/kvbmd/vllm/
	@if packaging/python-cflags.sh $(PYTHON) >/dev/null; then $(MAKE) --no-print-directory $(B)/python/kvbmd/_kvbm.abi3.so && touch $@; fi

define link_test
$(call say,LD,$@)
$(Q)mkdir -p $(@D) && $(CC) $(LINK_FLAGS) $(1) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) \
	-Wl,--end-group $(PKG_LIBS) $(CHECK_LIBS) -lm -ldl
endef

TEST_LIBS := $(LIBT) $(LIBK) $(LIBC) $(LIBD)

$(B)/tests/unit/%: $(B)/obj/tests/unit/%.o $(TEST_LIBS)
	$(call link_test)

$(B)/tests/integration/%: $(B)/obj/tests/integration/%.o $(TEST_LIBS)
	$(call link_test)

$(B)/tests/gpu/bench_%: $(B)/obj/tests/gpu/bench_%.o $(call obj,$(GPU_TEST_LIB_SRC) $(BENCH_LIB_SRC)) $(TEST_LIBS)
	$(call link_test)

$(B)/tests/gpu/%: $(B)/obj/tests/gpu/%.o $(call obj,$(GPU_TEST_LIB_SRC)) $(call pic,$(CUDA_CLIENT_SRC)) $(TEST_LIBS)
	$(call link_test)

$(B)/tests/bench/%: $(B)/obj/tests/bench/%.o $(call obj,$(BENCH_LIB_SRC)) $(TEST_LIBS)
	$(call link_test)

$(B)/tests/sim/sim: $(call obj,$(SIM_SRC)) $(TEST_LIBS)
	$(call link_test)

# With clang's libFuzzer the engine brings main(); otherwise tests/fuzz/main.c runs each file of a corpus once.
$(B)/tests/fuzz/%: $(B)/obj/tests/fuzz/%.o $(if $(filter fuzzer,$(SAN)),,$(call obj,$(FUZZ_MAIN))) $(TEST_LIBS)
	$(call link_test,$(if $(filter fuzzer,$(SAN)),-fsanitize=fuzzer))

-include $(ALL_OBJ:.o=.d)
