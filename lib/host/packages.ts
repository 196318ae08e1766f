/** How this host's distribution calls what is missing, as one command. */
import { type HostView, THIS_HOST } from "./host_view.ts";

/** Names of one thing in the families of distributions. */
export interface PackageNames {
  debian: string;
  fedora: string;
  suse: string;
  arch: string;
}

const INSTALL: Readonly<Record<keyof PackageNames, string>> = {
  debian: "apt-get install -y",
  fedora: "dnf install -y",
  suse: "zypper install -y",
  arch: "pacman -S --needed",
};

const FAMILIES: Readonly<Record<string, keyof PackageNames>> = {
  ubuntu: "debian",
  rhel: "fedora",
  centos: "fedora",
  opensuse: "suse",
  sles: "suse",
};

/** "run: apt-get install -y NAME", in the words of this host; of Debian where it does not say what it is. */
export function installRemedy(names: PackageNames, host: HostView = THIS_HOST): string {
  const family = familyOf(host.read("/etc/os-release") ?? "");
  return `run: ${INSTALL[family]} ${names[family]}`;
}

function familyOf(osRelease: string): keyof PackageNames {
  for (const key of ["ID", "ID_LIKE"]) {
    const words = new RegExp(`^${key}="?([^"\n]*)"?$`, "m").exec(osRelease)?.[1]?.split(" ") ?? [];
    for (const word of words) {
      const family = FAMILIES[word] ?? word;
      if (isFamily(family)) return family;
    }
  }
  return "debian";
}

function isFamily(word: string): word is keyof PackageNames {
  return Object.hasOwn(INSTALL, word);
}

/** Packages of the same name everywhere. */
export function sameEverywhere(name: string): PackageNames {
  return { debian: name, fedora: name, suse: name, arch: name };
}

/** Where system programs are, whatever the operator's PATH has. */
const SYSTEM_FOLDERS = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/** The path of a program; null where there is none. */
export function findProgram(name: string, path: string | undefined = Deno.env.get("PATH")): string | null {
  for (const folder of [...(path ?? "").split(":").filter((part) => part.startsWith("/")), ...SYSTEM_FOLDERS]) {
    try {
      const info = Deno.statSync(`${folder}/${name}`);
      if (info.isFile && ((info.mode ?? 0) & 0o111) !== 0) return `${folder}/${name}`;
    } catch (cause) {
      if (!isAbsent(cause)) throw cause;
    }
  }
  return null;
}

function isAbsent(cause: unknown): boolean {
  return [Deno.errors.NotFound, Deno.errors.NotADirectory, Deno.errors.PermissionDenied].some((kind) =>
    cause instanceof kind
  );
}
