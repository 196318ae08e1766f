#!/usr/bin/env bash
# Writes payload.c: the carried files as zstd frames, their table, and Deno's permission list.
#   pack.sh OUT_DIR FRAME_CACHE RUNTIME_FILE... -- APP_FILE...
# Frames are cached by content, because compressing Deno takes half a minute and it rarely changes.
set -euo pipefail
export LC_ALL=C

out=$1 frames=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$out" "$frames"

mode_of() {
	case $1 in
	*.js) echo 0400 ;;
	*) echo 0500 ;;
	esac
}

frame_of() { # FILE SHA256: path of its frame
	local frame=$frames/$2.zst
	if [[ ! -f $frame ]]; then
		zstd --quiet --force -19 --threads=0 --check "$1" -o "$frame.tmp"
		mv "$frame.tmp" "$frame"
	fi
	touch "$frame"
	realpath "$frame"
}

emit_pack() { # NAME FILE...: C code; the manifest's SHA-256 is the pack's name on disk
	local pack=$1 manifest='' rows='' n=0 file name sha size mode frame
	shift
	for file in "$@"; do
		name=$(basename "$file")
		sha=$(sha256sum "$file" | cut -d' ' -f1)
		size=$(stat -Lc %s "$file")
		mode=$(mode_of "$name")
		frame=$(frame_of "$file" "$sha")
		manifest+="$name $mode $size $sha"$'\n'
		rows+=$'\t'"{ \"$name\", $mode, $size, ${pack}_$n, ${pack}_${n}_end },"$'\n'
		printf '__asm__(".section .rodata\\n.balign 16\\n%s: .incbin \\"%s\\"\\n%s_end: .previous\\n");\n' \
			"${pack}_$n" "$frame" "${pack}_$n"
		printf 'extern const unsigned char %s[], %s_end[];\n' "${pack}_$n" "${pack}_$n"
		n=$((n + 1))
	done
	printf 'static const struct gy_file %s_files[] = {\n%s};\n' "$pack" "$rows"
	printf '#define %s_HASH "%s"\n#define %s_COUNT %s\n\n' "${pack^^}" \
		"$(printf '%s' "$manifest" | sha256sum | cut -d' ' -f1)" "${pack^^}" "$n"
}

runtime=() app=()
while [[ $1 != -- ]]; do
	runtime+=("$1")
	shift
done
shift
app=("$@")

{
	printf '/* Made by pack.sh. */\n#include "launcher.h"\n\n'
	emit_pack runtime "${runtime[@]}"
	emit_pack app "${app[@]}"
	printf 'const struct gy_pack gy_packs[GY_PACKS] = {\n'
	printf '\t[GY_PACK_RUNTIME] = { RUNTIME_HASH, runtime_files, RUNTIME_COUNT },\n'
	printf '\t[GY_PACK_APP] = { APP_HASH, app_files, APP_COUNT },\n};\n\n'
	printf 'const char *const gy_permissions[] = {\n'
	sed -n 's/^--.*/\t"&",/p' "$here/permissions"
	printf '\t0,\n};\n'
} >"$out/payload.c.new"

# An untouched payload.c spares make the link.
if cmp -s "$out/payload.c.new" "$out/payload.c"; then
	rm "$out/payload.c.new"
else
	mv "$out/payload.c.new" "$out/payload.c"
fi
