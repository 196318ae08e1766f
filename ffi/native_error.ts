/** Negative errno results as errors. */

const NAMES: Readonly<Record<number, readonly [code: string, text: string]>> = {
  1: ["EPERM", "operation not permitted"],
  2: ["ENOENT", "no such host or file"],
  3: ["ESRCH", "the process is gone"],
  4: ["EINTR", "interrupted"],
  5: ["EIO", "input/output error"],
  8: ["ENOEXEC", "it is not for this kernel"],
  9: ["EBADF", "bad file descriptor"],
  11: ["EAGAIN", "try again"],
  12: ["ENOMEM", "out of memory"],
  13: ["EACCES", "permission denied"],
  14: ["EFAULT", "bad address"],
  16: ["EBUSY", "busy"],
  17: ["EEXIST", "exists already"],
  19: ["ENODEV", "no such device"],
  22: ["EINVAL", "invalid argument"],
  23: ["ENFILE", "too many open files in the system"],
  24: ["EMFILE", "too many open files"],
  25: ["ENOTTY", "not supported by this kernel"],
  26: ["ETXTBSY", "it is being written"],
  27: ["EFBIG", "too large"],
  28: ["ENOSPC", "no space left"],
  32: ["EPIPE", "broken pipe"],
  34: ["ERANGE", "out of range"],
  61: ["ENODATA", "no data"],
  71: ["EPROTO", "protocol error"],
  74: ["EBADMSG", "damaged message"],
  90: ["EMSGSIZE", "message too long"],
  95: ["EOPNOTSUPP", "not supported"],
  98: ["EADDRINUSE", "address in use"],
  99: ["EADDRNOTAVAIL", "no such address on this host"],
  101: ["ENETUNREACH", "network unreachable"],
  103: ["ECONNABORTED", "connection closed"],
  104: ["ECONNRESET", "connection reset"],
  110: ["ETIMEDOUT", "timed out"],
  111: ["ECONNREFUSED", "connection refused"],
  113: ["EHOSTUNREACH", "host unreachable"],
  126: ["ENOKEY", "it is not signed with a key that the kernel knows"],
  129: ["EKEYREJECTED", "its signature is not accepted"],
};

export const ERRNO = {
  ENOMEM: 12,
  EACCES: 13,
  EBUSY: 16,
  EPROTO: 71,
  EMSGSIZE: 90,
  EADDRINUSE: 98,
  ECONNABORTED: 103,
  ETIMEDOUT: 110,
} as const;

/** A call into libgyges.so failed. */
export class NativeError extends Error {
  override readonly name = "NativeError";
  /** What was attempted, as an infinitive: "listen on 127.0.0.1:7000". */
  readonly op: string;
  readonly errno: number;
  /** "ENOMEM", or "E<number>" for one that has no name here. */
  readonly code: string;
  /** What was in the way: the library's words, or what the errno means. */
  readonly detail: string;

  constructor(op: string, errno: number, detail = "") {
    const [code, text] = NAMES[errno] ?? [`E${errno}`, "unknown error"];
    super(`Cannot ${op}: ${detail || text} (${code})`);
    this.detail = detail || text;
    this.op = op;
    this.errno = errno;
    this.code = code;
  }
}

/** The result, or NativeError for a negative one; `detail` is the library's own words about it. */
export function unwrap(op: string, result: number | bigint, detail = ""): number {
  const value = Number(result);
  if (value < 0) throw new NativeError(op, -value, detail);
  return value;
}
