package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// files.go: reading what a user names, and writing so that it lasts.

// readRegular reads a file of at most limit octets. Pipes and devices are refused: they may
// never end, or never begin.
func readRegular(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d octets", path, limit)
	}
	return b, err
}

// writeFile puts data at path, whole or not at all: what reads it meanwhile finds the old
// file or the new one, and so does who comes after a crash.
func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // hidden, and of mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names of a folder last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeNew makes a file of what write writes, readable by its owner alone. One that is there is
// left alone: nobody wants a backup to vanish under another. With an error what was written
// stays, unless that is nothing.
func writeNew(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(f, 256<<10)
	err = write(b)
	err = errors.Join(err, b.Flush(), f.Sync())
	if info, statErr := f.Stat(); err != nil && statErr == nil && info.Size() == 0 {
		os.Remove(path)
	}
	return errors.Join(err, f.Close(), syncDir(filepath.Dir(path)))
}
