package users

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/mail/smtp/sasl"
)

func TestMain(m *testing.M) { leak.Main(m) }

// Hashes of "pencil". The SCRAM keys are those of RFC 7677, Section 3.
const (
	scramPencil = "W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
	argonPencil = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$"
)

// cheapBcrypt makes a hash of the least cost: ours take seconds under the race detector.
func cheapBcrypt(t testing.TB, password string) string {
	t.Helper()
	text, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// hashOf makes a hash as user add does.
func hashOf(t testing.TB, s Scheme, password string) string {
	t.Helper()
	text, err := NewHash(s, password)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func fileOf(t testing.TB, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.txt")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Every scheme lets the right password in and no other, whether we made the hash or another
// program wrote it in its own way.
func TestPasswords(t *testing.T) {
	tests := []struct {
		name, hash, password string
	}{
		{"ours", hashOf(t, Argon2id, "pencil"), "pencil"},
		{"bcrypt", cheapBcrypt(t, "pencil"), "pencil"},
		{"ours", hashOf(t, SCRAM, "pencil"), "pencil"},
		{"ours", hashOf(t, Clear, "pencil"), "pencil"},
		{"with the name of the scheme in front", "{ARGON2ID}" + hashOf(t, Argon2id, "pencil"), "pencil"},
		{"$2y$ is $2b$", strings.Replace(cheapBcrypt(t, "pencil"), "$2a$", "$2y$", 1), "pencil"},
		{"RFC 7677", "{SCRAM-SHA-256}4096$" + scramPencil, "pencil"},
		{"RFC 5803", "SCRAM-SHA-256$4096:" + scramPencil, "pencil"},
		{"commas", "{SCRAM-SHA-256}4096," + strings.NewReplacer("$", ",", ":", ",").Replace(scramPencil), "pencil"},
		{"beyond ASCII, composed", hashOf(t, SCRAM, "cafe\u0301"), "caf\u00e9"},
		{"colons", "{PLAIN}a:b:c", "a:b:c"},
	}
	for _, tt := range tests {
		f := open(t, fileOf(t, "# users", "", "user:"+tt.hash+"\r"))
		check := f.Credentials().Password
		if err := check(t.Context(), "user", tt.password); err != nil {
			t.Errorf("%s: %.30s: %v", tt.name, tt.hash, err)
		}
		for user, password := range map[string]string{"user": tt.password + "x", "nobody": tt.password, "User": tt.password} {
			if err := check(t.Context(), user, password); !errors.Is(err, sasl.ErrDenied) {
				t.Errorf("%s: %.30s: %q with %q: %v", tt.name, tt.hash, user, password, err)
			}
		}
	}
}

// A second line does not let a second password in.
func TestOnePassword(t *testing.T) {
	f := open(t, fileOf(t, "user:{PLAIN}old", "user:"+hashOf(t, SCRAM, "new")))
	check := f.Credentials().Password
	if check(t.Context(), "user", "new") != nil || check(t.Context(), "user", "old") == nil {
		t.Error("the line of SCRAM does not decide alone")
	}
}

// All problems of a file are told, with their lines and without the hashes.
func TestProblems(t *testing.T) {
	bad := []struct{ line, want string }{
		{"no colon", "no colon"},
		{":{PLAIN}x", "the name is empty"},
		{"us\x07er:{PLAIN}x", "the name is empty, too long, or not"},
		{"\u2168:{PLAIN}x", "not in the form"},
		{"user:sekret", "not known here"},
		{"user:$6$sekret$sekret", "not known here"},
		{"user:$2x$10$" + strings.Repeat("a", 53), "not known here"},
		{"user:$2a$10$sekret", "malformed bcrypt"},
		{"user:$2a$31$" + strings.Repeat("a", 53), "cost 31"},
		{"user:$2a$10$" + strings.Repeat("!", 53), "malformed bcrypt"},
		{"user:$argon2id$sekret", "malformed argon2id"},
		{"user:$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$c29tZWhhc2hzb21laGFzaA", "m=4194304"},
		{"user:$argon2id$v=19$m=262144,t=100,p=1$c2FsdHNhbHQ$c29tZWhhc2hzb21laGFzaA", "t=100"},
		{"user:$argon2id$v=19$m=8,t=1,p=0$c2FsdHNhbHQ$c29tZWhhc2hzb21laGFzaA", "p=0"},
		{"user:$argon2id$v=19$m=0,t=1,p=1$c2FsdHNhbHQ$c29tZWhhc2hzb21laGFzaA", "m=0"},
		{"user:$argon2id$v=19$m=64,t=1,p=1$YQ$c29tZWhhc2hzb21laGFzaA", "salt"},
		{"user:$argon2id$v=16$m=64,t=1,p=1$c2FsdHNhbHQ$c29tZWhhc2hzb21laGFzaA", "malformed argon2id"},
		{"user:{SCRAM-SHA-256}sekret", "malformed SCRAM"},
		{"user:{SCRAM-SHA-256}1$" + scramPencil, "1 SCRAM iterations"},
		{"user:{SCRAM-SHA-256}9999999$" + scramPencil, "9999999 SCRAM iterations"},
		{"user:{SCRAM-SHA-256}4096$AAAA$AAAA:AAAA", "32 octets"},
		{"user:{PLAIN}", "empty"},
		{"user:{PLAIN}" + strings.Repeat("sekret", 1000), "longer than"},
		{"twice:{PLAIN}sekret", ""},
		{"twice:{PLAIN}sekret", "second line of plain, the first is line 24"},
	}
	var lines []string
	for _, b := range bad {
		lines = append(lines, b.line)
	}
	path := fileOf(t, lines...)
	_, err := Open(path)
	if err == nil {
		t.Fatal("no problem was found")
	}
	if strings.Contains(err.Error(), "sekret") {
		t.Errorf("a problem holds a hash:\n%v", err)
	}
	text := err.Error() + "\n"
	for i, b := range bad {
		at := path + ":" + strconv.Itoa(i+1) + ": "
		_, rest, found := strings.Cut(text, at)
		told, _, _ := strings.Cut(rest, "\n")
		if found != (b.want != "") || !strings.Contains(told, b.want) {
			t.Errorf("line %d, %.40q: told %q, want %q", i+1, b.line, told, b.want)
		}
	}
}

// SCRAM and CRAM-MD5 are offered while nobody would fail with them.
func TestWhatIsOffered(t *testing.T) {
	scram, argon := "{SCRAM-SHA-256}4096$"+scramPencil, argonPencil+"c29tZWhhc2hzb21laGFzaA"
	tests := []struct {
		name  string
		lines []string
		want  string
	}{
		{"SCRAM", []string{"a:" + scram, "b:" + scram}, "SCRAM-SHA-256 PLAIN LOGIN"},
		{"one has none", []string{"a:" + scram, "b:" + argon}, "PLAIN LOGIN"},
		{"one has both", []string{"a:" + scram, "b:" + argon, "b:" + scram}, "SCRAM-SHA-256 PLAIN LOGIN"},
		{"in clear", []string{"a:{PLAIN}pencil"}, "SCRAM-SHA-256 PLAIN LOGIN CRAM-MD5"},
		{"in clear and SCRAM", []string{"a:{PLAIN}pencil", "b:" + scram}, "SCRAM-SHA-256 PLAIN LOGIN"},
		{"nobody", nil, "SCRAM-SHA-256 PLAIN LOGIN CRAM-MD5"},
	}
	for _, tt := range tests {
		f := open(t, fileOf(t, tt.lines...))
		got := sasl.Available(sasl.Mechanisms(), f.Credentials(), sasl.Conn{AllowClear: true})
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: offers %q, want %q", tt.name, got, tt.want)
		}
	}
	f := open(t, fileOf(t, "a:"+scram, "b:"+argon))
	if got := f.Without(sasl.SCRAMSHA256); !slices.Equal(got, []string{"b"}) {
		t.Errorf("without SCRAM: %q", got)
	}
}

// The file serves real exchanges.
func TestExchanges(t *testing.T) {
	f := open(t, fileOf(t, "user:{PLAIN}pencil"))
	for _, name := range []string{sasl.SCRAMSHA256, sasl.Plain, sasl.Login, sasl.CRAMMD5} {
		for password, right := range map[string]bool{"pencil": true, "crayon": false} {
			conn := sasl.Conn{AllowClear: true, Offered: sasl.Mechanisms()}
			s, err := sasl.New(t.Context(), name, f.Credentials(), conn)
			if err != nil {
				t.Fatal(err)
			}
			c, err := sasl.NewClient(name, sasl.Account{User: "user", Password: password, AllowClear: true})
			if err != nil {
				t.Fatal(err)
			}
			_, said, _ := c.Start()
			done := false
			for !done && err == nil {
				if said, done, err = s.Next(said); err == nil && !done {
					said, err = c.Next(said)
				}
			}
			if done != right || s.Identity() == "user" != right {
				t.Errorf("%s with %q: %v, %v", name, password, done, err)
			}
		}
	}
}

func TestCertificate(t *testing.T) {
	f := open(t, fileOf(t, "a@example.com:{PLAIN}x", "b@example.com:{PLAIN}x"))
	cert := &x509.Certificate{EmailAddresses: []string{"z@example.com", "b@example.com", "a@example.com"}}
	verified := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}}
	ask := f.Credentials().Certificate
	for authz, want := range map[string]string{"": "b@example.com", "a@example.com": "a@example.com", "root": "b@example.com"} {
		if got, err := ask(t.Context(), verified, authz); got != want || err != nil {
			t.Errorf("asked for %q: %q, %v; want %q", authz, got, err, want)
		}
	}
	for _, state := range []*tls.ConnectionState{nil, {PeerCertificates: []*x509.Certificate{cert}}} {
		if _, err := ask(t.Context(), state, ""); !errors.Is(err, sasl.ErrDenied) {
			t.Errorf("a certificate that nobody verified: %v", err)
		}
	}
}

// A changed file is taken over; a bad one is told once and the old one stays.
func TestReload(t *testing.T) {
	path := fileOf(t, "a:{PLAIN}x")
	f := open(t, path)
	put := func(text string, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	step := func(what string, changed, failed bool, names ...string) {
		t.Helper()
		c, err := f.Reload()
		if c != changed || (err != nil) != failed {
			t.Errorf("%s: changed %v, %v", what, c, err)
		}
		var have []string
		for _, u := range f.Users() {
			have = append(have, u.Name)
		}
		if !slices.Equal(have, names) {
			t.Errorf("%s: users %q, want %q", what, have, names)
		}
	}
	session := f.Credentials()
	step("nothing new", false, false, "a")
	put("b:{PLAIN}y\n", 3*time.Hour)
	step("new", true, false, "b")
	put("c", 2*time.Hour)
	step("bad", false, true, "b")
	step("still bad", false, false, "b")
	put("c:{PLAIN}z", time.Hour)
	step("mended", true, false, "c")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	step("gone", false, true, "c")
	step("still gone", false, false, "c")
	put("d:{PLAIN}z", time.Minute)
	step("back", true, false, "d")
	if err := session.Password(t.Context(), "a", "x"); err != nil {
		t.Errorf("a session that began with the old file: %v", err)
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		if w := f.Warnings(); len(w) != 1 {
			t.Errorf("warnings %q", w)
		}
	}
}

// Whoever waits for a turn stops when the session ends.
func TestTurns(t *testing.T) {
	f := open(t, fileOf(t, "a:{PLAIN}x"))
	synctest.Test(t, func(t *testing.T) {
		turns := make(chan struct{}, 1)
		turns <- struct{}{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := view{f.table.Load(), turns}.password(ctx, "a", "x")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		<-turns
		if err := (view{f.table.Load(), turns}).password(t.Context(), "a", "x"); err != nil || len(turns) != 0 {
			t.Errorf("with a turn: %v, %d are out", err, len(turns))
		}
	})
}

// An unknown user costs what most users cost, and its salts outlive a new user.
func TestDecoy(t *testing.T) {
	scram := "{SCRAM-SHA-256}4096$" + scramPencil
	few := open(t, fileOf(t, "a:"+scram, "b:"+argonPencil+"c29tZWhhc2hzb21laGFzaA", "c:"+scram)).table.Load()
	more := open(t, fileOf(t, "# new", "a:"+scram, "d:{PLAIN}x")).table.Load()
	if few.decoy.cost() != "scram 4096" || few.rounds != 4096 {
		t.Errorf("decoys cost %q, %d", few.decoy.cost(), few.rounds)
	}
	if string(few.secret) != string(more.secret) || len(few.secret) != 32 {
		t.Error("a new user changes the salts of all who do not exist")
	}
}

func TestSetAndRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.txt")
	set := func(name string, s Scheme, password string, want ...Scheme) {
		t.Helper()
		removed, err := Set(path, name, s, password)
		if err != nil || !slices.Equal(removed, want) {
			t.Fatalf("set %s %s: removed %q, %v; want %q", name, s, removed, err, want)
		}
	}
	shape := func(want string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for l := range strings.Lines(string(data)) {
			l = strings.TrimSuffix(l, "\n")
			if at := strings.IndexByte(l, ':'); at > 0 {
				l = l[:at+8] // no more of the hash
			}
			have = append(have, l)
		}
		if got := strings.Join(have, "|"); got != want {
			t.Errorf("the file is %q, want %q", got, want)
		}
	}
	set("a", Clear, "one")
	shape("a:{PLAIN}")
	if err := os.WriteFile(path, []byte("# first\na:{PLAIN}one\n\n# second\nb:{PLAIN}two"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	set("a", SCRAM, "one")          // the same password: both stay
	set("a", SCRAM, "three", Clear) // another: the old one goes
	set("c", Bcrypt, "four")
	shape("# first||# second|b:{PLAIN}|a:{SCRAM-|c:$2a$12$")
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := Remove(path, "b"); err != nil {
		t.Fatal(err)
	}
	if err := Remove(path, "b"); !errors.Is(err, ErrNoUser) {
		t.Errorf("removed twice: %v", err)
	}
	shape("# first||# second|a:{SCRAM-|c:$2a$12$")
	check := open(t, path).Credentials().Password
	if check(t.Context(), "a", "three") != nil || check(t.Context(), "c", "four") != nil || check(t.Context(), "a", "one") == nil {
		t.Error("the passwords are not those that were set")
	}
	for _, name := range []string{"", "a:b", "#a", " a", "a\n", "\u2168"} {
		if _, err := Set(path, name, Clear, "x"); err == nil {
			t.Errorf("%q was taken as a name", name)
		}
	}
	for s, password := range map[Scheme]string{Bcrypt: strings.Repeat("x", 73), Clear: " x", SCRAM: "", "md5": "x"} {
		if _, err := Set(path, "a", s, password); err == nil {
			t.Errorf("%s took %q", s, password)
		}
	}
	shape("# first||# second|a:{SCRAM-|c:$2a$12$")

	if err := os.WriteFile(path, []byte("broken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Set(path, "a", Clear, "x"); err == nil || !strings.Contains(err.Error(), ":1: no colon") {
		t.Errorf("a broken file: %v", err)
	}
	shape("broken")
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A link stays one, and two who edit at once do not lose each other's work.
func TestEditCarefully(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "real.txt"), filepath.Join(dir, "users.txt")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Set(link, "a", Clear, "x"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v", err)
	}
	if len(open(t, path).Users()) != 1 {
		t.Error("the user is not in the file behind the link")
	}
	other := filepath.Join(dir, ".real.txt.new")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Set(link, "b", Clear, "x"); err == nil || !strings.Contains(err.Error(), other) {
		t.Errorf("while somebody edits: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("the other's file is gone: %v", err)
	}
}

// FuzzUsersFile: a file is taken whole or its problems are told, each with a line that it
// has; what is taken can be asked for every user and costs no more than the bounds.
func FuzzUsersFile(f *testing.F) {
	f.Add([]byte("# c\na:{PLAIN}x\nb:{SCRAM-SHA-256}4096$" + scramPencil + "\n"))
	f.Add([]byte("a:" + argonPencil + "c29tZWhhc2hzb21laGFzaA\r\n\nx"))
	f.Add([]byte("a:$2y$04$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"))
	f.Add([]byte("\ufeffa:SCRAM-SHA-256$4096:" + scramPencil))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := parse("f", data)
		if err != nil {
			list := err.(interface{ Unwrap() []error }).Unwrap()
			last := 0
			for _, e := range list {
				p, ok := e.(*Problem)
				if !ok || p.Line <= last || p.Line > strings.Count(string(data), "\n")+1 {
					t.Fatalf("%q: problem %v after line %d", data, e, last)
				}
				last = p.Line
			}
			return
		}
		for name, a := range table.accounts {
			if prepared, err := sasl.PrepareName(name); err != nil || prepared != name {
				t.Fatalf("%q: the name %q can never log in", data, name)
			}
			if a.password() == nil {
				t.Fatalf("%q: %q has no hash", data, name)
			}
			for _, h := range a.hashes {
				switch h := h.(type) {
				case *argonHash:
					if h.memory > maxArgonMemory || h.memory*h.time > maxArgonWork || h.lanes == 0 || h.time == 0 {
						t.Fatalf("%q: costs %s", data, h.cost())
					}
				case bcryptHash:
					if h.cost() > "bcrypt 15" {
						t.Fatalf("%q: costs %s", data, h.cost())
					}
				case scramHash:
					if h.Iterations > sasl.MaxIterations {
						t.Fatalf("%q: costs %s", data, h.cost())
					}
				}
			}
		}
		if len(table.accounts) > 0 && table.decoy == nil {
			t.Fatalf("%q: nothing stands in for unknown users", data)
		}
	})
}

// What a login costs, by scheme, and so what a crowd of them does.
func BenchmarkLogin(b *testing.B) {
	for _, s := range Schemes() {
		b.Run("scheme="+string(s), func(b *testing.B) {
			f := open(b, fileOf(b, "a:"+hashOf(b, s, "pencil")))
			check := f.Credentials().Password
			b.ReportAllocs()
			for b.Loop() {
				if err := check(b.Context(), "a", "pencil"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// counting is a hash that counts how often it is computed.
type counting struct {
	hash
	n *int
}

func (c counting) check(password string) bool {
	*c.n++
	return c.hash.check(password)
}

// A user that does not exist costs as many hashes as a wrong password, whatever the password
// is: nobody learns from the time which users there are.
func TestSameWork(t *testing.T) {
	f := open(t, fileOf(t, "user:"+hashOf(t, SCRAM, "pencil")))
	known, decoy := 0, 0
	table := f.table.Load()
	for s, h := range table.accounts["user"].hashes {
		table.accounts["user"].hashes[s] = counting{h, &known}
	}
	table.decoy = counting{table.decoy, &decoy}
	for _, tt := range []struct {
		password string
		want     int
	}{
		{"crayon", 1},
		{"cafe\u0301", 2}, // prepared, and as it was typed
		{"\u0001", 1},     // it cannot be prepared
		{strings.Repeat("x", 1024), 1},
	} {
		known, decoy = 0, 0
		for _, user := range []string{"user", "nobody"} {
			if err := f.Credentials().Password(t.Context(), user, tt.password); !errors.Is(err, sasl.ErrDenied) {
				t.Errorf("%s, %q: %v", user, tt.password, err)
			}
		}
		if known != tt.want || decoy != tt.want {
			t.Errorf("%.20q: %d hashes for the wrong password, %d for the unknown user, want %d", tt.password, known, decoy, tt.want)
		}
	}
}
