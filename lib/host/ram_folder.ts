/** Where `gyges module load` mounts gygesfs, and the kernel pager makes RAM files. */
export const RAM_FOLDER = "/run/gyges/ram";
