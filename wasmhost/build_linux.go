package wasmhost

import "debug/elf"

// buildID returns what Go's linker wrote into this program: a digest of all that it was
// built from. It is empty if it was told to write none.
func buildID() string {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	note := f.Section(".note.go.buildid")
	if note == nil {
		return ""
	}
	data, err := note.Data()
	if err != nil || len(data) <= noteHead {
		return ""
	}
	return string(data[noteHead:])
}

// noteHead is what a note begins with: three sizes and the name "Go".
const noteHead = 16
