//go:build unix

package wasmhost

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// checkOwned returns an error if somebody else than this user and root can write to dir or
// to what stands in it.
func checkOwned(dir string) error {
	inside, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, path := range append(inside, dir) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		own := st.Uid == 0 || int(st.Uid) == os.Geteuid()
		if !own || st.Mode&0o022 != 0 {
			return fmt.Errorf("%s holds native code that others could change (owner %d, mode %#o): remove it, or chown and chmod 700", path, st.Uid, st.Mode&0o777)
		}
	}
	return nil
}
