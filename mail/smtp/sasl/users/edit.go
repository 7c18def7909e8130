package users

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/penstock/penstock/mail/smtp/sasl"
)

// edit.go changes a file: line by line, so that comments and order stay, and as a whole, so
// that a reader sees the old file or the new one and nothing between.

// Set gives a user a password: it replaces the name's line of the scheme, or adds one behind
// the last. Lines of other schemes stay if they are of the same password; others would let
// the old one in, and are removed and returned. A file that is not there is made, with mode
// 0600; one that is keeps its owner, and its mode but for the rights of others. A file with
// problems is not touched; the error lists them.
func Set(path, name string, s Scheme, password string) (removed []Scheme, err error) {
	if prepared, err := sasl.PrepareName(name); err != nil {
		return nil, err
	} else if prepared != name || name[0] == '#' || bytes.ContainsRune([]byte(name), ':') || name != string(bytes.TrimSpace([]byte(name))) {
		return nil, fmt.Errorf("users: the name %q cannot stand in a file: no colon, no # in front, no space at the ends, plain characters", name)
	}
	text, err := NewHash(s, password)
	if err != nil {
		return nil, err
	}
	added := []byte(name + ":" + text + "\n")
	err = edit(path, true, func(lines []fileLine) ([]fileLine, error) {
		at := -1 // where the new line goes
		kept := lines[:0]
		for _, l := range lines {
			switch {
			case l.name != name:
			case l.scheme == s:
				at = len(kept)
				continue
			case !checkPassword(l.hash, password):
				removed = append(removed, l.scheme)
				continue
			}
			kept = append(kept, l)
		}
		if at < 0 {
			at = len(kept)
		}
		return slices.Insert(kept, at, fileLine{raw: added}), nil
	})
	return removed, err
}

// ErrNoUser is returned for a name that has no line.
var ErrNoUser = errors.New("users: no such user")

// Remove takes all lines of a name out of a file. It returns ErrNoUser if there is none.
func Remove(path, name string) error {
	return edit(path, false, func(lines []fileLine) ([]fileLine, error) {
		n := len(lines)
		lines = slices.DeleteFunc(lines, func(l fileLine) bool { return l.name == name })
		if len(lines) == n {
			return nil, ErrNoUser
		}
		return lines, nil
	})
}

// fileLine is a line as it stands and as it was read.
type fileLine struct {
	line
	raw []byte // with its end
}

// edit replaces a file by what change makes of its lines. The new file is written beside it
// under a name that only one process can make, which keeps two of them apart.
func edit(path string, create bool, change func([]fileLine) ([]fileLine, error)) (err error) {
	// A link stays a link, to the new file.
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("users: %s is there: somebody is changing the file right now, or was stopped while at it; then remove it", tmp)
	}
	if err != nil {
		return fmt.Errorf("users: %w", err)
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(tmp)
		}
	}()
	lines, info, err := readLines(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		lines, info, err = nil, nil, nil
	}
	if err != nil {
		return fmt.Errorf("users: %w", err)
	}
	if lines, err = change(lines); err != nil {
		return err
	}
	if err = write(out, lines, info); err != nil {
		return fmt.Errorf("users: write %s: %w", tmp, err)
	}
	if err = os.Rename(tmp, path); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// readLines reads a file that has no problems.
func readLines(path string) ([]fileLine, fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	data, err := readFile(path)
	if err != nil {
		return nil, nil, err
	}
	if _, err := parse(path, data); err != nil {
		return nil, nil, err
	}
	var lines []fileLine
	for raw := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		l, err := parseLine(string(raw))
		if err != nil {
			return nil, nil, err
		}
		lines = append(lines, fileLine{l, endLine(raw)})
	}
	return lines, info, nil
}

// endLine gives the last line of a file the end that it may lack.
func endLine(raw []byte) []byte {
	if bytes.HasSuffix(raw, []byte("\n")) {
		return raw
	}
	return append(slices.Clip(raw), '\n')
}

// write fills the new file and gives it the owner and mode of the old.
func write(out *os.File, lines []fileLine, old fs.FileInfo) error {
	for _, l := range lines {
		if _, err := out.Write(l.raw); err != nil {
			return err
		}
	}
	if old != nil {
		if err := keepOwner(out, old); err != nil {
			return err
		}
		// Whoever could write could read and more; others lose both.
		if err := out.Chmod(old.Mode().Perm() &^ 0o007); err != nil {
			return err
		}
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return out.Close()
}
