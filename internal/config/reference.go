package config

import (
	"fmt"
	"reflect"
	"strings"
)

// reference.go prints the table of keys for people.

const referenceHead = `# Configuration

The gateway reads one YAML file. ` + "`gateway check -c FILE`" + ` prints everything that is wrong with it at once, with its line, and
exits 1; warnings alone exit 0. This page is generated from the table that the program itself works from.

Each key can also be set in the environment: ` + "`PENSTOCK_`" + ` and its levels in capitals, two underscores between them, as in
` + "`PENSTOCK_LOG__LEVEL=debug`" + `. The command line wins over the environment, and that over the file. A list is replaced as a whole, and
written as a YAML value: ` + "`PENSTOCK_LISTENERS='[{name: mx, address: \":2525\"}]'`" + `. A backend or chain is named in capitals, with an
underscore for whatever a variable cannot have: ` + "`PENSTOCK_BACKENDS__MAIL_STORE__TLS=off`" + ` is for ` + "`backends.mail-store`" + `.

Zero and empty mean the default. Unknown keys are errors.

| type | how it is written |
|---|---|
| size | a whole number of bytes, or with B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (powers of 1024): ` + "`50MiB`" + ` |
| duration | a number with its unit: ` + "`30s`, `5m`, `1h30m`, `2d`" + ` |
| network | ` + "`192.0.2.0/24`, `2001:db8::/32`" + `, an address, or the word ` + "`unix`" + ` for peers on a unix socket |
| domain name | ` + "`example.com`" + `; names in other scripts are turned into their ASCII form |
| path | relative to the folder of the file; in a variable or flag, relative to the working directory |
| mapping by name | keys of your own choice: up to 64 letters, digits, dots, hyphens and underscores (` + "`NAME`" + ` below) |
`

// Reference returns the manual of all keys in Markdown: each with its type, its
// default and its meaning.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	for _, f := range schemaOf(reflect.TypeFor[Config]()).fields {
		fmt.Fprintf(&b, "\n## %s\n\n| key | type | default | meaning |\n|---|---|---|---|\n", f.key)
		row(&b, f.key, f)
		f.schema.each(f.key, func(path string, f field) { row(&b, path, f) })
	}
	return b.String()
}

func row(b *strings.Builder, path string, f field) {
	def := f.def
	switch {
	case f.required:
		def = "required"
	case def != "":
		def = "`" + def + "`"
	}
	fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", path, f.schema.typeName(), def, strings.ReplaceAll(f.doc, "|", `\|`))
}

// typeName is describe with what a list holds.
func (s *schema) typeName() string {
	if s.kind == kindList && s.elem.kind != kindMapping {
		return "list of: " + s.elem.typeName()
	}
	return s.describe()
}
