/** The kernel module's sources, carried as text: kernel/ as it was when this program was built. */
import copying from "../../kernel/COPYING" with { type: "text" };
import kbuild from "../../kernel/Kbuild" with { type: "text" };
import makefile from "../../kernel/Makefile" with { type: "text" };
import dirty from "../../kernel/dirty.c" with { type: "text" };
import dkms from "../../kernel/dkms.conf" with { type: "text" };
import exportC from "../../kernel/export.c" with { type: "text" };
import fault from "../../kernel/fault.c" with { type: "text" };
import file from "../../kernel/file.c" with { type: "text" };
import fs from "../../kernel/fs.c" with { type: "text" };
import compat from "../../kernel/gyges_compat.h" with { type: "text" };
import exportH from "../../kernel/gyges_export.h" with { type: "text" };
import internal from "../../kernel/gyges_internal.h" with { type: "text" };
import trace from "../../kernel/gyges_trace.h" with { type: "text" };
import importC from "../../kernel/import.c" with { type: "text" };
import uapi from "../../kernel/include/uapi/linux/gyges.h" with { type: "text" };
import link from "../../kernel/link.c" with { type: "text" };
import main from "../../kernel/main.c" with { type: "text" };
import pageSets from "../../kernel/page_sets.c" with { type: "text" };
import prefetch from "../../kernel/prefetch.c" with { type: "text" };
import pull from "../../kernel/pull.c" with { type: "text" };
import register from "../../kernel/register.c" with { type: "text" };
import stats from "../../kernel/stats.c" with { type: "text" };

export const UAPI_PATH = "include/uapi/linux/gyges.h";

/** Text by path from kernel/; a test holds it to what is there. */
export const MODULE_FILES: Readonly<Record<string, string>> = {
  "COPYING": copying,
  "Kbuild": kbuild,
  "Makefile": makefile,
  "dirty.c": dirty,
  "dkms.conf": dkms,
  "export.c": exportC,
  "fault.c": fault,
  "file.c": file,
  "fs.c": fs,
  "gyges_compat.h": compat,
  "gyges_export.h": exportH,
  "gyges_internal.h": internal,
  "gyges_trace.h": trace,
  "import.c": importC,
  [UAPI_PATH]: uapi,
  "link.c": link,
  "main.c": main,
  "page_sets.c": pageSets,
  "prefetch.c": prefetch,
  "pull.c": pull,
  "register.c": register,
  "stats.c": stats,
};
