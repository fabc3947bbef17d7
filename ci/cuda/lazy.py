#!/usr/bin/env python3
"""Makes archives to link to in place of NVIDIA's libraries, for building on machines that do not have them.

    lazy.py CUDARC_FOLDER OUT_FOLDER

Every function that cudarc declares becomes a jump through a table. At its first call the entry is looked up in the real
library, which is opened then (x86-64, System V calling convention). A library that is missing ends the program with
exit code 3 and says which; `replica` asks before it calls anything.
"""
import pathlib
import re
import subprocess
import sys

# library: folder of cudarc's declarations, names to open, newest first
LIBRARIES = {
    "cuda": ("driver", ["libcuda.so.1"]),
    "cublas": ("cublas", ["libcublas.so.13", "libcublas.so.12"]),
    "cublasLt": ("cublaslt", ["libcublasLt.so.13", "libcublasLt.so.12"]),
    "curand": ("curand", ["libcurand.so.10"]),
    "nvrtc": ("nvrtc", ["libnvrtc.so.13", "libnvrtc.so.12"]),
}

# the arguments of the call under way are kept: six in registers, eight in vector registers
ASSEMBLY = """
    .text
resolve:
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %r8
    pushq %r9
    subq $136, %rsp
    movups %xmm0, (%rsp)
    movups %xmm1, 16(%rsp)
    movups %xmm2, 32(%rsp)
    movups %xmm3, 48(%rsp)
    movups %xmm4, 64(%rsp)
    movups %xmm5, 80(%rsp)
    movups %xmm6, 96(%rsp)
    movups %xmm7, 112(%rsp)
    movl %eax, %edi
    call lazy_lookup_LIBRARY
    movq %rax, %r11
    movups (%rsp), %xmm0
    movups 16(%rsp), %xmm1
    movups 32(%rsp), %xmm2
    movups 48(%rsp), %xmm3
    movups 64(%rsp), %xmm4
    movups 80(%rsp), %xmm5
    movups 96(%rsp), %xmm6
    movups 112(%rsp), %xmm7
    addq $136, %rsp
    popq %r9
    popq %r8
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    jmp *%r11
"""

FUNCTION = """
    .globl NAME
    .type NAME, @function
NAME:
    movq lazy_table_LIBRARY+OFFSET(%rip), %r11
    testq %r11, %r11
    jz 1f
    jmp *%r11
1:  movl $INDEX, %eax
    jmp resolve
    .size NAME, . - NAME
"""

LOOKUP = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const names[] = {NAMES};
static const char *const files[] = {FILES};
__attribute__((visibility("hidden"))) void *lazy_table_LIBRARY[sizeof names / sizeof *names];

/* Two threads that come here at once find the same address. */
__attribute__((visibility("hidden"))) void *lazy_lookup_LIBRARY(unsigned index) {
    void *library = NULL;
    for (unsigned i = 0; i < sizeof files / sizeof *files && !library; i++)
        library = dlopen(files[i], RTLD_NOW | RTLD_GLOBAL);
    void *function = library ? dlsym(library, names[index]) : NULL;
    if (!function) {
        fprintf(stderr, "error: %s of %s: %s\n", names[index], files[0], dlerror());
        exit(3);
    }
    return lazy_table_LIBRARY[index] = function;
}
"""


def functions(folder):
    """Names in cudarc's declarations of a library's C functions."""
    text = (folder / "sys" / "mod.rs").read_text()
    names = re.findall(r"^\s*(?:pub )?(?:unsafe )?fn ((?:cu|nvrtc)[A-Za-z0-9_]+)\s*\(", text, re.M)
    return sorted(set(names))


def main():
    cudarc, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    for library, (folder, files) in LIBRARIES.items():
        names = functions(cudarc / "src" / folder)
        if not names:
            sys.exit(f"error: {cudarc}/src/{folder}/sys/mod.rs declares no functions; is this cudarc?")
        assembly = ASSEMBLY + "".join(
            FUNCTION.replace("NAME", name).replace("OFFSET", str(8 * i)).replace("INDEX", str(i))
            for i, name in enumerate(names)
        )
        assembly += '    .section .note.GNU-stack, "", @progbits\n'
        quoted = lambda items: ", ".join(f'"{item}"' for item in items)
        lookup = LOOKUP.replace("NAMES", quoted(names)).replace("FILES", quoted(files))
        objects = []
        for suffix, text in ((".S", assembly), (".c", lookup)):
            source = out / f"{library}{suffix}"
            source.write_text(text.replace("LIBRARY", library))
            objects.append(source.with_suffix(f"{suffix}.o"))
            subprocess.run(["gcc", "-O2", "-fPIC", "-c", source, "-o", objects[-1]], check=True)
        subprocess.run(["ar", "crs", out / f"lib{library}.a", *objects], check=True)
        print(f"lib{library}.a: {len(names)} functions")


main()
