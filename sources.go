// Package penstock carries the sources that an author of a filter needs: the Go SDK, and
// filtertest with what it stands on. The gateway lays them down beside the author's
// project, so that a filter builds where there is a Go compiler but no network:
//
//	myfilter/
//	├── go.mod               require github.com/penstock/penstock v0.0.0
//	│                        replace github.com/penstock/penstock => ./.penstock
//	├── go.sum
//	├── main.go              import "github.com/penstock/penstock/guest-sdk/filter"
//	├── main_test.go         import "github.com/penstock/penstock/guest-sdk/filtertest"
//	└── .penstock/           written by WriteModule
//
// The filter itself imports nothing from outside. Its native tests reach x/net/idna through
// mail/smtp, so that the first go test fetches that one module, if it is not there yet.
package penstock

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

//go:embed go.mod go.sum
//go:embed guest-sdk/abi/*.go guest-sdk/filter/*.go guest-sdk/filtertest/*.go
//go:embed internal/match/*.go mail/smtp/*.go mail/message/*.go mail/parts/*.go policy/*.go policy/guest/*.go
var sources embed.FS

// Module is the path of the module that WriteModule writes.
const Module = "github.com/penstock/penstock"

// outside are the modules that filtertest reaches, and no filter does.
var outside = []string{"golang.org/x/net", "golang.org/x/text"}

// WriteModule writes the module into dir, which it makes if need be. Files of the same
// names are replaced, others stay.
func WriteModule(dir string) error {
	mod, err := goMod(Module, "")
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "go.mod"), mod); err != nil {
		return err
	}
	return fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := sources.ReadFile(path)
		if err != nil {
			return err
		}
		return write(filepath.Join(dir, filepath.FromSlash(path)), text)
	})
}

// ProjectFiles returns go.mod and go.sum of an author's project called name, whose copy of
// the sources is in folder dir, relative to it and with slashes, as in "./.penstock".
func ProjectFiles(name, dir string) (goModText, goSumText []byte, err error) {
	goModText, err = goMod(name, Requirement(dir))
	if err != nil {
		return nil, nil, err
	}
	sum, err := sources.ReadFile("go.sum")
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(sum)) {
		for _, m := range outside {
			version, err := outsideVersion(m)
			if err != nil {
				return nil, nil, err
			}
			if strings.HasPrefix(line, m+" "+version+" ") || strings.HasPrefix(line, m+" "+version+"/go.mod ") {
				goSumText = append(goSumText, line...)
			}
		}
	}
	return goModText, goSumText, nil
}

// Requirement returns the lines that an author's go.mod needs for sources that are in
// folder dir, as in ProjectFiles.
func Requirement(dir string) string {
	return "require " + Module + " v0.0.0\n\nreplace " + Module + " => " + dir + "\n"
}

// goMod writes a go.mod with our Go version and the modules of filtertest.
func goMod(module, more string) ([]byte, error) {
	version, err := ownLine("go ")
	if err != nil {
		return nil, err
	}
	text := "module " + module + "\n\n" + version + "\n\nrequire (\n"
	for _, m := range outside {
		v, err := outsideVersion(m)
		if err != nil {
			return nil, err
		}
		text += "\t" + m + " " + v + " // indirect\n"
	}
	return []byte(text + ")\n\n" + more), nil
}

// outsideVersion is the version of a module in our own go.mod.
func outsideVersion(module string) (string, error) {
	line, err := ownLine(module + " ")
	if err != nil {
		return "", err
	}
	return strings.Fields(line)[1], nil
}

// errOwn would be a fault of ours: go.mod lacks what a test has seen in it.
var errOwn = errors.New("penstock: go.mod has no such line")

// ownLine returns the line of our go.mod that begins with prefix.
func ownLine(prefix string) (string, error) {
	mod, err := sources.ReadFile("go.mod")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mod)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "require ")
		if strings.HasPrefix(line, prefix) {
			return line, nil
		}
	}
	return "", fmt.Errorf("%w: %s", errOwn, prefix)
}

func write(file string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("penstock: write sources: %w", err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return fmt.Errorf("penstock: write sources: %w", err)
	}
	return nil
}
