package corpus

// structure.go tells messages apart by how they are built. It is a reader for
// tests: it makes something of everything, and gives up on nothing.

import (
	"bytes"
	"fmt"
	"mime"
	"slices"
	"strings"
)

// maxDepth bounds how deep multiparts are looked into.
const maxDepth = 20

// structure returns a fingerprint: the names of the header fields, the tree of
// content types, charsets and transfer encodings, whether there are 8-bit and NUL bytes
// in header and body, and how long the longest line is.
func structure(raw []byte) string {
	header, body := cutHeader(raw)
	var b strings.Builder
	names := fieldNames(header)
	fmt.Fprintf(&b, "fields %s\n", strings.Join(names, " "))
	fmt.Fprintf(&b, "bytes %s %s\n", byteClasses(header), byteClasses(body))
	fmt.Fprintf(&b, "lines %s\n", lineClass(raw))
	writeTree(&b, header, body, 0)
	return b.String()
}

// writeTree writes one line for an entity and each entity in it.
func writeTree(b *strings.Builder, header, body []byte, depth int) {
	kind, params := contentType(header)
	encoding := strings.ToLower(field(header, "Content-Transfer-Encoding"))
	disposition, _, _ := strings.Cut(strings.ToLower(field(header, "Content-Disposition")), ";")
	fmt.Fprintf(b, "%*s%s charset=%s %s %s empty=%v\n", depth, "", kind, strings.ToLower(params["charset"]), encoding, disposition, len(bytes.TrimSpace(body)) == 0)
	if depth == maxDepth {
		return
	}
	switch {
	case kind == "message/rfc822":
		header, body = cutHeader(body)
		writeTree(b, header, body, depth+1)
	case strings.HasPrefix(kind, "multipart/") && params["boundary"] != "":
		for _, part := range parts(body, params["boundary"]) {
			header, body := cutHeader(part)
			writeTree(b, header, body, depth+1)
		}
	}
}

// contentType returns the media type in lower case, or as much of it as can be
// read, and its parameters. It is empty if there is no such field.
func contentType(header []byte) (kind string, params map[string]string) {
	value := field(header, "Content-Type")
	if value == "" {
		return "", nil
	}
	kind, params, err := mime.ParseMediaType(value)
	if err != nil {
		kind, _, _ = strings.Cut(value, ";")
		kind = "broken " + strings.ToLower(strings.TrimSpace(kind))
	}
	return kind, params
}

// cutHeader splits an entity at its first empty line.
func cutHeader(raw []byte) (header, body []byte) {
	if body, ok := bytes.CutPrefix(raw, []byte("\r\n")); ok {
		return nil, body
	}
	header, body, _ = bytes.Cut(raw, []byte("\r\n\r\n"))
	return header, body
}

// eachField calls yield with the name and the value of each header field. A line
// without a name is given with an empty one.
func eachField(header []byte, yield func(name, value string)) {
	unfolded := strings.NewReplacer("\r\n ", " ", "\r\n\t", " ").Replace(string(header))
	for line := range strings.SplitSeq(unfolded, "\r\n") {
		name, value, ok := strings.Cut(line, ":")
		if !ok || strings.ContainsAny(name, " \t") {
			name, value = "", line
		}
		yield(name, strings.TrimSpace(value))
	}
}

// fieldNames returns the set of names in lower case, sorted.
func fieldNames(header []byte) []string {
	var names []string
	eachField(header, func(name, _ string) { names = append(names, strings.ToLower(name)) })
	slices.Sort(names)
	return slices.Compact(names)
}

// field returns the first value of the named field.
func field(header []byte, want string) (found string) {
	eachField(header, func(name, value string) {
		if found == "" && strings.EqualFold(name, want) {
			found = value
		}
	})
	return found
}

// parts returns what lies between the boundary lines of a multipart. RFC 2046,
// Section 5.1.1. A missing end mark ends the last part at the end of the body.
func parts(body []byte, boundary string) (found [][]byte) {
	var part []byte
	inside := false
	for line := range bytes.SplitAfterSeq(body, []byte("\r\n")) {
		mark := strings.TrimRight(string(line), " \t\r\n")
		start, end := mark == "--"+boundary, mark == "--"+boundary+"--"
		if inside && (start || end) {
			found = append(found, part)
			part = nil
		}
		switch {
		case end:
			return found
		case start:
			inside = true
		case inside:
			part = append(part, line...)
		}
	}
	if inside {
		found = append(found, part)
	}
	return found
}

// byteClasses tells which kinds of bytes occur.
func byteClasses(b []byte) string {
	class := "7bit"
	if slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 }) {
		class = "8bit"
	}
	if bytes.IndexByte(b, 0) >= 0 {
		class += "+nul"
	}
	return class
}

// lineClass tells how long the longest line is: within the 78 bytes of RFC 5322,
// Section 2.1.1, within the 998 that it and RFC 5321 require, or longer.
func lineClass(raw []byte) string {
	longest := 0
	for line := range bytes.SplitSeq(raw, []byte("\r\n")) {
		longest = max(longest, len(line))
	}
	switch {
	case longest <= 78:
		return "short"
	case longest <= 998:
		return "long"
	default:
		return "too long"
	}
}
