//go:build !unix

package users

import (
	"io/fs"
	"os"
)

// keepOwner has nothing to do where files have no owner in their mode.
func keepOwner(*os.File, fs.FileInfo) error { return nil }

// syncDir has nothing to do where folders cannot be synced.
func syncDir(string) error { return nil }
