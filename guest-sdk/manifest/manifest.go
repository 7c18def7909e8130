// Package manifest reads and writes what a filter says of itself: a JSON text in the custom
// section mg1.manifest of its module. Who builds a filter puts it there, from the file
// filter.json beside the sources; the gateway shows it to the operator, who grants what it
// asks for or does not. It grants nothing.
//
//	{"name": "bodymatch", "version": "1", "capabilities": ["body_read"]}
package manifest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// File is the name of the file beside a filter's sources.
const File = "filter.json"

// Section is the name of the custom section.
const Section = abi.ManifestSection

// maxSize is the most octets of a manifest.
const maxSize = 64 << 10

// Manifest is what a filter says of itself. The zero Manifest says nothing.
type Manifest struct {
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	// Capabilities are those it asks for; see abi.CapabilityTable.
	Capabilities []string `json:"capabilities,omitempty"`
	// Optional are those that it uses with some configurations alone.
	Optional []string `json:"optional,omitempty"`
	// MinMinor is the least minor version of the ABI that it can do with.
	MinMinor int `json:"min_minor,omitempty"`
}

// Parse reads a manifest. Keys that it does not know are for others; a capability that it
// does not know is one of a later version, and is kept. The empty text is the zero
// Manifest.
func Parse(text []byte) (Manifest, error) {
	var m Manifest
	if len(text) == 0 {
		return m, nil
	}
	if len(text) > maxSize {
		return m, fmt.Errorf("manifest: %d octets, want at most %d", len(text), maxSize)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	for _, list := range []*[]string{&m.Capabilities, &m.Optional} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return m, nil
}

// Check is Parse for who writes a manifest: what is misspelt is an error.
func Check(text []byte) (Manifest, error) {
	m, err := Parse(text)
	if err != nil {
		return m, err
	}
	for _, c := range slices.Concat(m.Capabilities, m.Optional) {
		if !slices.Contains(abi.Capabilities(), c) {
			return m, fmt.Errorf("manifest: there is no capability %q; there are %s", c, strings.Join(abi.Capabilities(), ", "))
		}
	}
	if m.MinMinor < 0 || m.MinMinor > abi.Minor {
		return m, fmt.Errorf("manifest: min_minor is %d, and this SDK speaks up to minor version %d of %s", m.MinMinor, abi.Minor, abi.Module)
	}
	return m, nil
}

// Append returns the module with the manifest as its last section. A module that has one is
// an error.
func Append(wasm, text []byte) ([]byte, error) {
	if _, err := Check(text); err != nil {
		return nil, err
	}
	if old, err := Find(wasm); err != nil || old != nil {
		return nil, errors.Join(err, errors.New("manifest: the module has one already"))
	}
	body := binary.AppendUvarint(nil, uint64(len(Section)))
	body = append(append(body, Section...), text...)
	out := append(bytes.Clone(wasm), 0)
	out = binary.AppendUvarint(out, uint64(len(body)))
	return append(out, body...), nil
}

var errBroken = errors.New("manifest: the module's sections cannot be read")

// Find returns the text of a module's manifest; nil if it has none. It looks at nothing
// else of the module.
func Find(wasm []byte) ([]byte, error) {
	const head = 8
	if len(wasm) < head {
		return nil, errBroken
	}
	for b := wasm[head:]; len(b) > 0; {
		id := b[0]
		body, rest, ok := vector(b[1:])
		if !ok {
			return nil, errBroken
		}
		if b = rest; id != 0 {
			continue
		}
		name, text, ok := vector(body)
		if !ok {
			return nil, errBroken
		}
		if string(name) == Section {
			return append([]byte{}, text...), nil
		}
	}
	return nil, nil
}

// vector splits octets that follow their length off.
func vector(b []byte) (v, rest []byte, ok bool) {
	n, used := binary.Uvarint(b)
	if used <= 0 || n > uint64(len(b)-used) {
		return nil, nil, false
	}
	return b[used:][:n], b[used:][n:], true
}
