/**
 * Devices by which a guest gives pages of its RAM back to the host while it runs: what comes in their place, once it
 * uses them again, are other pages.
 */
import * as v from "valibot";
import { type QmpClient, QmpCommandError } from "./qmp.ts";

const FOLDERS = ["/machine/peripheral", "/machine/peripheral-anon"];
const objectsSchema = v.array(v.object({ name: v.string(), type: v.string() }));

/** Which device does so all the time, in words; null: only when somebody asks the guest to. */
export async function whyDiscarding(qmp: QmpClient): Promise<string | null> {
  for (const folder of FOLDERS) {
    for (const { name, type } of await qmp.ask(objectsSchema, "qom-list", { path: folder })) {
      if (!type.startsWith("child<virtio-balloon")) continue;
      const path = `${folder}/${name}`;
      if (await reportsFreePages(qmp, path)) return `the guest's balloon reports free pages (${path})`;
    }
  }
  return null;
}

/** QEMU before 5.1 does not know the property. */
async function reportsFreePages(qmp: QmpClient, path: string): Promise<boolean> {
  try {
    return await qmp.ask(v.boolean(), "qom-get", { path, property: "free-page-reporting" });
  } catch (error) {
    if (error instanceof QmpCommandError) return false;
    throw error;
  }
}
