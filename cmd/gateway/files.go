package main

import (
	"fmt"
	"io"
	"os"
)

// files.go: reading what a user names.

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
