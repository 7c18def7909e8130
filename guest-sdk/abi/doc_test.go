package abi

import (
	"bytes"
	"fmt"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strings"
	"testing"
)

// doc_test.go writes docs/abi.md from the package comment and the tables.

const docFile = "../../docs/abi.md"

func TestDocument(t *testing.T) {
	want := document(t)
	if *update {
		if err := os.WriteFile(docFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the tables say; write it with: go test ./guest-sdk/abi -update", docFile)
	}
}

func document(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("# The filter ABI mg1\n\n<!-- Written by go test ./guest-sdk/abi -update. Do not edit. -->\n\n")
	b.Write(packageComment(t))
	fmt.Fprintf(&b, "\nThe version is %s, minor %d. A mailbox has %d to %d octets. Exports whose names begin with `%s` are refused.\n",
		Module, Minor, MinMailbox, MaxMailbox, ReservedPrefix)
	documentHooks(&b)
	documentFields(&b)
	documentActions(&b)
	documentImports(t, &b)
	documentCapabilities(&b)
	documentErrnos(&b)
	documentLimits(&b)
	return b.Bytes()
}

// packageComment returns the comment as Markdown, its headings one level below ours.
func packageComment(t *testing.T) []byte {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "abi.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	var p comment.Parser
	pr := comment.Printer{HeadingLevel: 2, HeadingID: func(*comment.Heading) string { return "" }}
	return pr.Markdown(p.Parse(f.Doc.Text()))
}

func documentHooks(b *bytes.Buffer) {
	names := map[Field]string{}
	for _, f := range FieldTable() {
		names[f.Field] = f.Name
	}
	b.WriteString("\n## Hooks\n\n| hook | name | when | fields of the frame |\n|---|---|---|---|\n")
	for _, h := range HookTable() {
		var fields []string
		for _, f := range h.Fields {
			fields = append(fields, names[f])
		}
		fmt.Fprintf(b, "| %d | %s | %s | %s |\n", h.Hook, h.Name, h.Doc, strings.Join(fields, ", "))
	}
}

var kindNames = map[Kind]string{KindBytes: "bytes", KindInt: "int", KindList: "list", KindIP: "ip"}

func documentFields(b *bytes.Buffer) {
	b.WriteString("\n## Fields\n\n" +
		"Kinds: 1 bytes, octets; 2 int, an int64; 3 list, elements of a uint32 length and that many octets each; " +
		"4 ip, 4 or 16 octets in network order. A field that there is not is missing.\n\n" +
		"| field | name | kind | meaning |\n|---|---|---|---|\n")
	for _, f := range FieldTable() {
		fmt.Fprintf(b, "| %d | %s | %s | %s |\n", f.Field, f.Name, kindNames[f.Kind], f.Doc)
	}
}

func documentActions(b *bytes.Buffer) {
	b.WriteString("\n## Actions\n\n| action | name | meaning |\n|---|---|---|\n")
	for _, a := range ActionTable() {
		fmt.Fprintf(b, "| %d | %s | %s |\n", a.Action, a.Name, a.Doc)
	}
}

func documentImports(t *testing.T, b *bytes.Buffer) {
	b.WriteString("\n## Imports\n\n" + importsComment(t) + "\n")
	group := ""
	for _, f := range Imports() {
		if f.Group != group {
			group = f.Group
			fmt.Fprintf(b, "\n### %s\n\n| function | at | meaning |\n|---|---|---|\n", group)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", Signature(f), whenText(f.When), f.Doc)
	}
}

// importsComment returns the second paragraph of the comment of Imports, the rules of
// all functions.
func importsComment(t *testing.T) string {
	t.Helper()
	src, err := os.ReadFile("table.go")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)// carry it\.\n//\n(.*?)\nfunc Imports`).FindSubmatch(src)
	if m == nil {
		t.Fatal("table.go: the comment of Imports is not where it was")
	}
	return strings.ReplaceAll(strings.ReplaceAll(string(m[1]), "// ", ""), "\n//", "\n")
}

// whenText names a set of hooks as a person would.
func whenText(w Hooks) string {
	switch w {
	case Anytime:
		return "init and all hooks"
	case DuringInit:
		return "init"
	case InSession:
		return "all hooks"
	case Deciding:
		return "all hooks whose verdict counts"
	}
	return strings.Join(whenNames(w), ", ")
}

// whenNames are the members of a set of hooks.
func whenNames(w Hooks) []string {
	var names []string
	if w&DuringInit != 0 {
		names = append(names, "init")
	}
	for _, h := range HookTable() {
		if w.Has(h.Hook) {
			names = append(names, h.Name)
		}
	}
	return names
}

func documentCapabilities(b *bytes.Buffer) {
	b.WriteString("\n## Types of records\n\n| type | name | octets of a record |\n|---|---|---|\n")
	for _, d := range DNSTypes() {
		fmt.Fprintf(b, "| %d | %s | %s |\n", d.Type, d.Name, d.Doc)
	}
	b.WriteString("\n## Capabilities\n\nWhat the operator grants to a filter. The manifest asks for it, in the list `capabilities`; " +
		"what is not granted answers EPERM, and an action that is not granted is the filter's failure. All else is always granted.\n\n" +
		"| name | meaning |\n|---|---|\n")
	for _, c := range CapabilityTable() {
		fmt.Fprintf(b, "| %s | %s |\n", c.Name, c.Doc)
	}
}

func documentErrnos(b *bytes.Buffer) {
	b.WriteString("\n## Error numbers\n\n| number | name | meaning |\n|---|---|---|\n")
	for _, e := range Errnos {
		fmt.Fprintf(b, "| %d | %s | %s |\n", e.Errno, e.Name, e.Doc)
	}
}

func documentLimits(b *bytes.Buffer) {
	b.WriteString("\n## Limits\n\nA guest that keeps to these keeps working; above them a function returns ELIMIT or does less. Some of them an operator may set otherwise.\n\n" +
		"| name | value |\n|---|---|\n")
	for _, c := range limits {
		fmt.Fprintf(b, "| %s | %d |\n", c.name, c.value)
	}
}
