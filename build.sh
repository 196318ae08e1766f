#!/usr/bin/env bash
# The one build entry. What it makes: dist/gyges, one file, and all it needs on the way.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Debian packages that the build needs; npm only if there is none (it fetches Deno).
PACKAGES=(gcc make libc6-dev libssl-dev libzstd-dev zstd libibverbs-dev librdmacm-dev)

# What the lab needs besides (tests/lab): emulated hosts, and the RDMA programs that run in them; and tests/qemu: guests.
# Their kernels and a second QEMU are fetched and unpacked into ${GYGES_LAB_CACHE:-~/.cache/gyges-lab}, never installed.
LAB_PACKAGES=(qemu-system-x86 kmod sparse xz-utils iproute2 rdmacm-utils ibverbs-providers ibverbs-utils)

# Deno comes from its npm package. Pinned by version and SHA-512 of the package file.
DENO_VERSION=2.9.6
DENO_PACKAGE=@deno/linux-x64-glibc
DENO_SHA512=de67784ca2c2bb3b0b0e67cea02e4a37b34065ac525643209bae2f83a7e80f4d090400c2a584b6ff942a5dfce09cfe59433de22cff6f05026d120735d7a380a1

CACHE=$PWD/.cache
DENO=$CACHE/deno-$DENO_VERSION/deno
export DENO_DIR=$CACHE/deno-dir DENO_NO_UPDATE_CHECK=1
# Certificates that the host trusts serve for downloads too: a site may have its own registry.
export DENO_TLS_CA_STORE=${DENO_TLS_CA_STORE:-system,mozilla}
export PATH=${DENO%/*}:$PATH

usage() {
	cat <<-'END'
		usage: ./build.sh COMMAND
		  build         make dist/gyges; installs what is missing
		  demo [ARG...] build, then dist/gyges demo ARG...; in an emulated host where there is no /dev/kvm
		  test [PART...] build, then every test, or the parts named: unit shim cli kvm emulated qemu lab
		  deno ARG...   the pinned Deno, for developers: ./build.sh deno task ok
		  clean         remove what was built (.cache, with the downloads, stays)
	END
}

say() { printf 'build: %s\n' "$*" >&2; }

die() {
	say "$@"
	exit 3 # this host cannot; the message names the remedy
}

# install_packages [PACKAGE...]: those of every build, and PACKAGE...
install_packages() {
	local missing=() package
	for package in "${PACKAGES[@]}" "$@"; do
		[[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
	done
	command -v npm >/dev/null || [[ -x $DENO ]] || missing+=(npm)
	((${#missing[@]})) || return 0

	local install="apt-get install -y --no-install-recommends ${missing[*]}"
	command -v apt-get >/dev/null || die "this is not Debian; install the equivalents of: ${missing[*]}"
	((EUID == 0)) || die "packages are missing; as root run: apt-get update && $install"
	say "installing Debian packages: ${missing[*]}"
	# Old lists serve as well, if they know the packages: not every builder can update them.
	DEBIAN_FRONTEND=noninteractive $install >&2 && return
	apt-get update >&2
	DEBIAN_FRONTEND=noninteractive $install >&2
}

install_deno() (
	[[ -x $DENO ]] && exit 0
	[[ $(uname -m) == x86_64 ]] || die "Gyges runs on x86_64, this is $(uname -m)"
	say "installing Deno $DENO_VERSION from npm into ${DENO%/*}"
	temp=$(mktemp -d "$CACHE/deno.XXXXXX")
	trap 'rm -rf "$temp"' EXIT
	cd "$temp"
	npm pack --silent "$DENO_PACKAGE@$DENO_VERSION" >/dev/null || die "npm cannot fetch $DENO_PACKAGE@$DENO_VERSION"
	echo "$DENO_SHA512 $(echo ./*.tgz)" | sha512sum --check --quiet || die "$DENO_PACKAGE@$DENO_VERSION is not the pinned file"
	tar xzf ./*.tgz
	mkdir -p "${DENO%/*}"
	mv package/deno "$DENO"
)

bundle() {
	local new=$CACHE/bundle.new
	rm -rf "$new"
	# Not --minify: Deno 2.9.6's inlines a `using` variable that is read once, and so never disposes of it.
	"$DENO" bundle --quiet --frozen --code-splitting --outdir "$new" cli/main.ts
	# Untouched files keep the launcher from being linked again.
	if diff -rq "$new" "$CACHE/bundle" >/dev/null 2>&1; then
		rm -rf "$new"
	else
		rm -rf "$CACHE/bundle"
		mv "$new" "$CACHE/bundle"
	fi
}

# `deno compile` needs its runtime base, denort: from DENORT_BIN, or from the network. What it makes is not compressed
# and larger than the 60 MB that dist/gyges may have, so it stands beside the launcher, which is built in any case.
compile() {
	local none=$CACHE/no-denort program=dist/gyges-compiled.new
	# Asking the network takes seconds, so a refusal is remembered for a day.
	if [[ -z ${DENORT_BIN:-} && -n $(find "$none" -mtime -1 2>/dev/null) ]]; then
		return
	fi
	local permissions
	# The paths of gyges and of the library are not known until it runs.
	mapfile -t permissions < <(sed -n 's/={.*//; /^--/p' c-shim/launcher/permissions)
	if "$DENO" compile --quiet --frozen --self-extracting --no-prompt "${permissions[@]}" \
		--include c-shim/build/libgyges.so --output "$program" cli/main.ts >"$CACHE/compile.log" 2>&1 &&
		[[ $("./$program" --version 2>/dev/null) == *"(compiled)" ]]; then
		mv "$program" dist/gyges-compiled
		say "dist/gyges-compiled: made by deno compile, $(stat -c %s dist/gyges-compiled) bytes"
	else
		rm -f "$program" dist/gyges-compiled
		touch "$none"
		say "deno compile has no runtime base here (see .cache/compile.log), so the launcher form is the only one;"
		say "DENORT_BIN=FILE names one"
	fi
}

build_launcher() {
	local out=c-shim/build/launcher before
	c-shim/launcher/pack.sh "$out" "$CACHE/frames" "$DENO" -- c-shim/build/libgyges.so "$CACHE"/bundle/*.js
	make --silent -C c-shim/launcher
	before=$(stat -c %Y dist/gyges 2>/dev/null || true)
	# By rename: a running gyges keeps its own file.
	cmp -s "$out/gyges" dist/gyges || { cp "$out/gyges" dist/gyges.new && mv dist/gyges.new dist/gyges; }
	# Frames of old builds.
	find "$CACHE/frames" -name '*.zst' -mtime +14 -delete
	[[ $before == $(stat -c %Y dist/gyges) ]] || say "dist/gyges: launcher form, $(stat -c %s dist/gyges) bytes"
}

# Two builds in one tree take turns.
take_lock() {
	mkdir -p "$CACHE"
	exec 9>"$CACHE/lock"
	flock 9
}

setup() (
	take_lock
	install_packages
	install_deno
)

build() (
	take_lock
	install_packages
	install_deno
	mkdir -p dist
	make --silent --jobs="$(nproc)" -C c-shim
	bundle
	build_launcher
	compile
)

# What `gyges demo` is given under emulation unless the operator says otherwise: all is slower there, so the link and,
# with it, the guest are too, and the modes compare as they do with the defaults.
EMULATED_DEFAULTS=("--ram 32MiB" "--bandwidth 50Mbit")

demo() {
	if [[ -e /dev/kvm ]]; then
		exec dist/gyges demo "$@"
	fi
	say "This machine has no /dev/kvm: the demo runs in an emulated host, some 50 times slower"
	(take_lock && install_packages "${LAB_PACKAGES[@]}")
	local args=("$@") fetch=() default i
	for default in "${EMULATED_DEFAULTS[@]}"; do
		# shellcheck disable=SC2206 # an option and its value
		[[ " $* " == *" ${default% *}"[=\ ]* ]] || args=($default "${args[@]}")
	done
	# A report is written in the host.
	for ((i = 1; i <= $#; i++)); do
		case ${!i} in
		--report=*) fetch=(--fetch "${!i#*=}") ;;
		--report) ((i < $#)) && i=$((i + 1)) && fetch=(--fetch "${!i}") ;;
		esac
	done
	exec "$DENO" run --quiet -A tests/lab/inside.ts "${fetch[@]}" -- dist/gyges demo "${args[@]}"
}

main() {
	local command=${1:-help}
	shift || true
	case $command in
	build) build ;;
	demo)
		build
		demo "$@"
		;;
	test)
		build
		(($#)) && [[ " $* " != *" lab "* && " $* " != *" qemu "* && " $* " != *" emulated "* ]] || (take_lock && install_packages "${LAB_PACKAGES[@]}")
		exec "$DENO" run --quiet -A tests/run.ts "$@"
		;;
	deno)
		[[ -x $DENO ]] || setup
		exec "$DENO" "$@"
		;;
	clean)
		rm -rf dist c-shim/build "$CACHE/bundle" "$CACHE/no-denort"
		;;
	help | -h | --help) usage ;;
	*)
		usage >&2
		exit 2
		;;
	esac
}

main "$@"
