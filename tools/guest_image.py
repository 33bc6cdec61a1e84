# SPDX-License-Identifier: Apache-2.0
"""Build what QEMU needs to start a small Linux guest: the distribution's kernel and an initramfs.

The kernel comes from the distribution's own package, unpacked into a cache directory and never installed. The
initramfs holds a static busybox, the 9p and virtio modules, and whatever programs and files the caller names.
Both are cached under a hash of what went into them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
KERNEL_PACKAGES = {"debian": "linux-image-amd64", "ubuntu": "linux-image-generic"}
BUILD_PACKAGES = ("busybox-static", "kmod", "qemu-system-x86")
MODULES = ("virtio_pci", "9pnet_virtio", "9p")
APT_TIMEOUT = 600.0


class GuestUnavailable(Exception):
    """The guest cannot be had on this machine; the text says why and what to do."""


@dataclass(frozen=True)
class Image:
    """The two files that QEMU boots from."""

    kernel: Path
    initrd: Path


@dataclass(frozen=True)
class Recipe:
    """What goes into the initramfs besides busybox and the modules.

    :param init: the text of /init.
    :param programs: names or absolute paths of programs, copied with the shared libraries they load.
    :param files: more files: path in the guest to path on the host.
    :param texts: more files: path in the guest to content.
    """

    init: str
    programs: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


def cache_dir() -> Path:
    """Where kernels and images are kept: $VIRTFS_GUEST_CACHE, or .cache/guest in the repository."""
    return Path(os.environ.get("VIRTFS_GUEST_CACHE") or REPOSITORY / ".cache" / "guest")


def ensure_packages(names: Iterable[str]) -> None:
    """Have these Debian packages installed, by apt-get where this process is root.

    :raises GuestUnavailable: when one is missing and cannot be installed; the text has the line that does it.
    """
    missing = [name for name in names if not _installed(name)]
    if not missing:
        return
    line = f"apt-get install -y --no-install-recommends {' '.join(missing)}"
    if shutil.which("apt-get") is None:
        raise GuestUnavailable(f"this needs the equivalent of Debian's packages: {' '.join(missing)}")
    if os.geteuid() != 0:
        raise GuestUnavailable(f"Debian packages are missing; run: sudo {line}")
    try:
        _apt(line.split())
    except subprocess.CalledProcessError:  # the usual reason is a list of packages that is empty or old
        try:
            _apt(["apt-get", "update"])
            _apt(line.split())
        except subprocess.CalledProcessError as error:
            raise GuestUnavailable(f"{line} failed:\n{error.stderr}") from error


def _installed(name: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", name]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"
    except FileNotFoundError:
        return False


def _apt(command: Sequence[str], cwd: Path | None = None) -> str:
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C")
    done = subprocess.run(
        command, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=APT_TIMEOUT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout


def build(recipe: Recipe) -> Image:
    """The image for a recipe, from the cache where it is there already.

    :raises GuestUnavailable: when the kernel, a package or a program cannot be had.
    """
    if os.uname().machine != "x86_64":
        raise GuestUnavailable("the guest is built for x86_64 only, and this machine is not")
    ensure_packages(BUILD_PACKAGES)
    kernel, modules = _kernel()
    tree = _tree(recipe, modules)
    digest = hashlib.sha256()
    for entry in sorted(tree, key=lambda entry: entry.path):
        digest.update(repr((entry.path, entry.mode, entry.rdev)).encode() + hashlib.sha256(entry.data).digest())
    initrd = cache_dir() / f"initrd-{digest.hexdigest()[:16]}.cpio"
    if not initrd.exists():
        _write_whole(initrd, b"".join(_cpio(tree)))
    return Image(kernel, initrd)


def _kernel() -> tuple[Path, list[Path]]:
    """The kernel's path and its modules' paths in the order they are to be loaded."""
    system = _os_release()
    key = hashlib.sha256(repr((system, MODULES, 1)).encode()).hexdigest()[:16]
    home = cache_dir() / f"kernel-{key}"
    if not home.exists():
        if system[0] not in KERNEL_PACKAGES:
            raise GuestUnavailable(f"no kernel package is known for {system[0] or 'this system'}")
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix="unpack-") as work:
            _unpack_kernel(KERNEL_PACKAGES[system[0]], Path(work))
            os.rename(Path(work) / "kernel", home)
    return home / "vmlinuz", sorted(home.glob("*.ko"))


def _os_release() -> tuple[str, str]:
    """The identifier of the distribution (its relatives count as it) and its version."""
    lines = Path("/etc/os-release").read_text().splitlines() if Path("/etc/os-release").exists() else []
    facts = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
    names = [facts.get("ID", ""), *facts.get("ID_LIKE", "").split()]
    return next((name for name in names if name in KERNEL_PACKAGES), names[0]), facts.get("VERSION_ID", "")


def _unpack_kernel(package: str, work: Path) -> None:
    """Leave vmlinuz and the numbered modules in work/kernel."""
    _fetch_kernel(package, work)
    tree, kernel = work / "tree", work / "kernel"
    kernel.mkdir()
    for deb in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, tree], check=True)
    shutil.copy(next(tree.glob("boot/vmlinuz-*")), kernel / "vmlinuz")
    os.chmod(kernel / "vmlinuz", 0o644)
    # Ubuntu's newer packages keep their modules in usr/lib; depmod and modprobe look in lib.
    if not (tree / "lib").exists():
        (tree / "lib").symlink_to("usr/lib")
    release = next(tree.glob("lib/modules/*")).name
    env = dict(os.environ, PATH=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    subprocess.run(["depmod", "-b", tree, release], check=True, env=env)
    show = ["modprobe", "-d", str(tree), "-S", release, "--show-depends", "-a", *MODULES]
    lines = subprocess.run(show, check=True, env=env, capture_output=True, text=True).stdout.splitlines()
    paths = dict.fromkeys(line.split()[1] for line in lines if line.startswith("insmod "))
    for number, path in enumerate(map(Path, paths)):
        _plain_module(path, kernel / f"{number:02}-{path.name.split('.')[0]}.ko")


def _fetch_kernel(package: str, work: Path) -> None:
    """Leave the packages in work, with a fresh list of packages if need be and this process is root."""
    try:
        try:
            _download_kernel(package, work)
        except subprocess.CalledProcessError:
            if os.geteuid() != 0:
                raise
            _apt(["apt-get", "update"])
            _download_kernel(package, work)
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", None) or error
        raise GuestUnavailable(f"cannot fetch {package} (is apt-get update to be run?): {reason}") from error


def _plain_module(source: Path, target: Path) -> None:
    """Copy a module, uncompressed: busybox's insmod knows none of the compressions."""
    tool = {".zst": "zstd", ".xz": "xz", ".gz": "gzip"}.get(source.suffix)
    if tool is None:
        shutil.copy(source, target)
        return
    ensure_packages([{"xz": "xz-utils"}.get(tool, tool)])
    with target.open("wb") as out:
        subprocess.run([tool, "-dc", source], check=True, stdout=out)


def _download_kernel(package: str, work: Path) -> None:
    """Fetch the packages behind the metapackage that hold the kernel and its modules."""
    images = _depends(package, "linux-image-")
    if not images:
        raise GuestUnavailable(f"{package} depends on no linux-image package")
    names = [*images, *(name for image in images for name in _depends(image, "linux-modules-"))]
    _apt(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *names], cwd=work)


def _depends(package: str, prefix: str) -> list[str]:
    lines = _apt(["apt-cache", "depends", "--important", package]).splitlines()
    names = [line.split()[-1] for line in lines if line.strip(" |").startswith("Depends:")]
    return [name for name in names if name.startswith(prefix)][:1]


@dataclass(frozen=True)
class _Entry:
    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def _tree(recipe: Recipe, modules: Sequence[Path]) -> list[_Entry]:
    """Every entry of the initramfs, parents first."""
    busybox = Path("/bin/busybox").read_bytes()
    entries = [
        _Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
        _Entry("init", 0o100755, recipe.init.encode()),
    ]
    # The kernel opens /dev/console for init before anything could mount a devtmpfs.
    entries.append(_Entry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1)))
    entries += [_Entry(f"modules/{path.name}", 0o100644, path.read_bytes()) for path in modules]
    files = dict(recipe.files)
    for program in recipe.programs:
        files |= _program(program)
    for where, path in files.items():
        entries.append(_Entry(where.lstrip("/"), stat.S_IFREG | (path.stat().st_mode & 0o777), path.read_bytes()))
    entries += [_Entry(where.lstrip("/"), 0o100644, text.encode()) for where, text in recipe.texts.items()]
    directories = {"proc", "sys", "mnt", "root", "tmp", "run", "etc"}
    for entry in entries:
        directories.update(str(parent) for parent in Path(entry.path).parents if parent != Path("."))
    return [_Entry(path, stat.S_IFDIR | 0o755) for path in sorted(directories)] + entries


def _program(name: str) -> dict[str, Path]:
    """A program and the libraries it loads, at the paths they have here."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise GuestUnavailable(f"{name} is not installed here, and the guest needs it")
    return {found: Path(found), **libraries(Path(found))}


def libraries(binary: Path) -> dict[str, Path]:
    """The shared libraries that ldd names for a program or library."""
    lines = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout.splitlines()
    words = [word for line in lines for word in line.split() if word.startswith("/")]
    return {word: Path(word) for word in words}


def python_files(imports: Sequence[str]) -> tuple[str, dict[str, Path]]:
    """A Python for the guest: its path there, and the files it reads to start and to import these modules."""
    python = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
    program = (
        f"import sys, {', '.join(imports)}\n"
        "print(getattr(sys, '_base_executable', sys.executable))\n"
        "for m in list(sys.modules.values()): print(getattr(m, '__file__', None) or '')"
    )
    command = [python, "-I", "-S", "-c", program]
    executable, *paths = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    files = {str(binary): binary for binary in [Path(executable).resolve()]}
    files |= {path: Path(path) for path in paths}
    for path in list(files):
        if not path.endswith(".py"):
            files |= libraries(Path(path))
    return str(Path(executable).resolve()), files


def _cpio(entries: Iterable[_Entry]) -> Iterable[bytes]:
    """The entries as a cpio archive, newc format (kernel: driver-api/early-userspace/buffer-format.rst)."""
    for inode, entry in enumerate([*entries, _Entry("TRAILER!!!", 0)], 1):
        name = entry.path.encode() + b"\0"
        nlink = 2 if stat.S_ISDIR(entry.mode) else 1
        numbers = (inode, entry.mode, 0, 0, nlink, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
        yield header + bytes(-len(header) % 4) + entry.data + bytes(-len(entry.data) % 4)


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
        os.fchmod(handle, 0o644)
    os.rename(name, path)
