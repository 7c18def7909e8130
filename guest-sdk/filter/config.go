package filter

import "strconv"

// Config is an object of the filter's configuration. Getters return the default (the
// zero value if none is given) when a key is missing or null. They do not return errors:
// a value of the wrong type is noted under its key, and [Config.Err] has all that were
// noted, so that an operator sees every fault at once. What is noted keeps the filter
// from being loaded, whether the filter asks for it or not.
type Config struct {
	host  host
	input string
	node  *node
	path  string // of the object, with a dot behind; empty for the outermost
	notes *notes
}

// notes are the faults found so far.
type notes struct{ list []string }

// readConfig reads what the host has.
func readConfig(h host) (Config, error) {
	raw := grow(func(b []byte) int32 { return min(h.Config(0, b), maxConfig+1) })
	c := Config{host: h, input: string(raw), node: &node{kind: kindObject}, notes: &notes{}}
	if trim(c.input) == "" {
		c.input = ""
		return c, nil
	}
	n, err := parseJSON(c.input)
	switch {
	case err != nil:
		return c, err
	case n.kind == kindNull:
		c.input = ""
	case n.kind != kindObject:
		return c, text("filter: configuration: is " + kindNames[n.kind] + ", want an object")
	default:
		c.node = &n
	}
	return c, nil
}

// Err returns all that was noted so far as one error, nil if there is nothing.
func (c Config) Err() error {
	if len(c.notes.list) == 0 {
		return nil
	}
	s := "filter: configuration: "
	for i, n := range c.notes.list {
		if i > 0 {
			s += "; "
		}
		s += n
	}
	return text(s)
}

// Fail notes that the value of key is wrong, for checks that the getters do not know, as
// in c.Fail("code", "want a code from 500 to 599").
func (c Config) Fail(key, why string) {
	c.notes.list = append(c.notes.list, c.path+key+": "+why)
}

// Only notes every key that is not among keys: a misspelt key would otherwise be a
// setting that silently does nothing. It is about this object, not about those in it.
func (c Config) Only(keys ...string) {
next:
	for _, have := range c.node.keys {
		for _, k := range keys {
			if k == have {
				continue next
			}
		}
		c.Fail(have, "unknown key")
	}
}

// Keys returns the keys in their order.
func (c Config) Keys() []string { return append([]string(nil), c.node.keys...) }

// Has tells whether the key is there and not null.
func (c Config) Has(key string) bool { return c.node.get(key) != nil }

// get returns a value of kind; nil if it is missing or, which is noted, of another kind.
func (c Config) get(key string, want kind) *node {
	n := c.node.get(key)
	if n == nil {
		return nil
	}
	if n.kind != want {
		c.Fail(key, "is "+kindNames[n.kind]+", want "+kindNames[want])
		return nil
	}
	return n
}

// String returns a string.
func (c Config) String(key string, def ...string) string {
	if n := c.get(key, kindString); n != nil {
		return n.text
	}
	return first(def)
}

// Strings returns a list of strings.
func (c Config) Strings(key string, def ...string) []string {
	n := c.get(key, kindList)
	if n == nil {
		return def
	}
	out := make([]string, 0, len(n.list))
	for i, e := range n.list {
		if e.kind != kindString {
			c.Fail(index(key, i), "is "+kindNames[e.kind]+", want a string")
			continue
		}
		out = append(out, e.text)
	}
	return out
}

// Int returns a whole number.
func (c Config) Int(key string, def ...int64) int64 {
	n := c.get(key, kindNumber)
	if n == nil {
		return first(def)
	}
	v, err := strconv.ParseInt(n.text, 10, 64)
	if err != nil {
		c.Fail(key, n.text+" is not a whole number of 64 bits")
	}
	return v
}

// Bool returns true or false.
func (c Config) Bool(key string, def ...bool) bool {
	if n := c.get(key, kindBool); n != nil {
		return n.text == "true"
	}
	return first(def)
}

// Duration returns a duration in nanoseconds, as time.Duration has it. It is written as a
// string: 1h30m, 10s, 250ms, 2d.
func (c Config) Duration(key string, def ...int64) int64 {
	n := c.get(key, kindString)
	if n == nil {
		return first(def)
	}
	d, ok := sum(n.text, durationUnits[:])
	if !ok {
		c.Fail(key, strconv.Quote(n.text)+" is not a duration such as 1h30m, 10s or 250ms")
	}
	return d
}

// Size returns a number of octets. It is written as a number, or as a string: 500, "64
// KiB", "25MB".
func (c Config) Size(key string, def ...int64) int64 {
	n := c.node.get(key)
	if n == nil {
		return first(def)
	}
	if n.kind != kindString && n.kind != kindNumber {
		c.Fail(key, "is "+kindNames[n.kind]+", want a size such as 64KiB")
		return 0
	}
	size, ok := parseSize(n.text)
	if !ok {
		c.Fail(key, strconv.Quote(n.text)+" is not a size such as 500, 64KiB or 25MB")
	}
	return size
}

// Sub returns the object under key; one without keys if it is missing.
func (c Config) Sub(key string) Config {
	n := c.get(key, kindObject)
	if n == nil {
		n = &node{kind: kindObject}
	}
	return c.sub(key, n)
}

func (c Config) sub(key string, n *node) Config {
	c.node, c.path = n, c.path+key+"."
	return c
}

// List returns the objects of the list under key.
func (c Config) List(key string) []Config {
	n := c.get(key, kindList)
	if n == nil {
		return nil
	}
	var out []Config
	for i := range n.list {
		e := &n.list[i]
		if e.kind != kindObject {
			c.Fail(index(key, i), "is "+kindNames[e.kind]+", want an object")
			continue
		}
		out = append(out, c.sub(index(key, i), e))
	}
	return out
}

// Raw returns the object's JSON text.
func (c Config) Raw() []byte {
	if c.node.to == 0 {
		return []byte("{}")
	}
	return []byte(c.input[c.node.from:c.node.to])
}

// Unmarshal hands the object's JSON text to decode, as in c.Unmarshal(json.Unmarshal,
// &v): the cost of a codec is borne by the filters that import one.
func (c Config) Unmarshal(decode func(data []byte, v any) error, v any) error {
	return decode(c.Raw(), v)
}

// Log writes a line to the gateway's log while the configuration is read; see
// [Event.Log].
func (c Config) Log(level Level, text string, pairs ...string) {
	logLine(c.host, level, text, pairs)
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

func first[T any](def []T) (v T) {
	if len(def) > 0 {
		v = def[0]
	}
	return v
}

// unit is a unit of an amount.
type unit struct {
	name string
	n    int64
}

var durationUnits = [...]unit{{"d", 24 * 3600e9}, {"h", 3600e9}, {"m", 60e9}, {"s", 1e9}, {"ms", 1e6}, {"us", 1e3}, {"ns", 1}}

// The units are those of the gateway's own configuration: K and M alone are not among
// them, since half of the world reads them as 1000.
var sizeUnits = [...]unit{{"b", 1}, {"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"tb", 1e12},
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"tib", 1 << 40}}

// sum adds up amounts: 1h30m.
func sum(s string, units []unit) (total int64, ok bool) {
	if s == "0" {
		return 0, true
	}
	for s != "" {
		n, rest, ok := amount(s, units)
		if !ok || total > 1<<62-n {
			return 0, false
		}
		total, s = total+n, rest
		if s == "" {
			return total, true
		}
	}
	return 0, false
}

func parseSize(s string) (int64, bool) {
	if n, err := strconv.ParseInt(s, 10, 63); err == nil && n >= 0 && s[0] != '+' {
		return n, true
	}
	n, rest, ok := amount(lower(s), sizeUnits[:])
	return n, ok && rest == ""
}

// amount reads digits and the unit behind them.
func amount(s string, units []unit) (n int64, rest string, ok bool) {
	i := 0
	for i < len(s) && '0' <= s[i] && s[i] <= '9' {
		i++
	}
	n, err := strconv.ParseInt(s[:i], 10, 63)
	if err != nil {
		return 0, "", false
	}
	s = trim(s[i:])
	i = 0
	for i < len(s) && 'a' <= s[i] && s[i] <= 'z' {
		i++
	}
	for _, u := range units {
		if u.name == s[:i] {
			return n * u.n, s[i:], n <= (1<<62)/u.n
		}
	}
	return 0, "", false
}
