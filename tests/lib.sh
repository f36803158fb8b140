# Sourced by the scripts beside it.

# need_packages COMMAND:PACKAGE...: installs the packages of the commands (or files) that are missing.
need_packages() {
	local item missing=()
	export PATH=$PATH:/usr/sbin:/sbin
	for item; do
		command -v "${item%%:*}" > /dev/null || [ -e "${item%%:*}" ] || missing+=("${item#*:}")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
		echo "$0: missing: ${missing[*]}; on Debian 12: apt-get install --no-install-recommends ${missing[*]}" >&2
		exit 2
	fi
	echo "installing ${missing[*]}" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
}

# The Rust toolchain: Debian 12's own is too old.
need_cargo() {
	if ! command -v cargo > /dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
		PATH=$HOME/.cargo/bin:$PATH
	fi
	command -v cargo > /dev/null && return 0
	echo "$0: there is no cargo; install Rust 1.95 or later from https://rustup.rs" >&2
	exit 2
}

# Prints a word if this host's KVM looks usable. The tests find out by trying; this is only about whether
# QEMU has to be installed.
own_kvm() {
	if [ -w /dev/kvm ] && grep -qwE 'svm|vmx' /proc/cpuinfo; then echo yes; fi
}
