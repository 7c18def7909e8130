package delivery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp/sasl"
)

var joe = sasl.Account{User: "joe", Password: "secret"}

func TestLogin(t *testing.T) {
	const plain = "AUTH PLAIN"
	for _, c := range []struct {
		name  string
		ehlo  string
		reply string
		want  string
		auths int
	}{
		{"right", plain, "", "", 1},
		{"wrong", plain, "535 5.7.8 no", "535 5.7.8 no", 1},
		{"later", plain, "454 4.7.0 busy", "454 4.7.0 busy", 1},
		{"closing", plain, "421 4.3.2 bye", errNoLogin.Line(), 1},
		{"closed", plain, "drop", errNoLogin.Line(), 1},
		{"a challenge too many", plain, "334 ", errNoLogin.Line(), 1},
		{"not offered", "AUTH GSSAPI", "", errNoLogin.Line(), 0},
		{"no AUTH", "SIZE", "", errNoLogin.Line(), 0},
	} {
		f := &fake{ehlo: []string{c.ehlo}, answer: func(line string) string {
			return or(on("AUTH", c.reply)(line), on("*", "501 cancelled")(line))
		}}
		tr := open(t, one(f.listen(t)))
		got := ""
		if err := tr.Login(t.Context(), "b", joe); err != nil {
			got = outcome(err)
		}
		check(t, c.name, got, c.want)
		check(t, c.name+": AUTH", f.heard("AUTH PLAIN AGpvZQBzZWNyZXQ="), c.auths)
		check(t, c.name+": pool", figures(stats(t, tr)), "open 0 idle 0 busy 0 dialled 0 reused 0 lost 0")
	}
}

// A login does not go in clear text over a network, not to a backend that is down as long
// as there is another, and not beside too many others.
func TestLoginLimits(t *testing.T) {
	a, b := &fake{ehlo: []string{"AUTH PLAIN"}}, &fake{ehlo: []string{"AUTH PLAIN"}, answer: on("AUTH", "hang")}
	o := one(hostA)
	bubble(t, a, b, o, func(t *testing.T, tr *Transport, n *network) {
		check(t, "in clear", outcome(tr.Login(t.Context(), "b", joe)), errNoLogin.Line())
		check(t, "AUTH", a.heard("AUTH"), 0)
		check(t, "no such backend", outcome(tr.Login(t.Context(), "c", joe)), errNoLogin.Line())

		o := one(hostA, hostB)
		o.ClearLogin, o.Logins, o.ConnectTimeout = true, 1, time.Minute
		if err := tr.Update(map[string]BackendOptions{"b": o}); err != nil {
			t.Fatal(err)
		}
		if err := tr.Login(t.Context(), "b", joe); err != nil {
			t.Error(err)
		}
		n.set("a:25", nil)
		done := make(chan error)
		go func() { done <- tr.Login(t.Context(), "b", joe) }()
		time.Sleep(time.Second)
		start := time.Now()
		err := tr.Login(t.Context(), "b", joe)
		check(t, "too many", fmt.Sprint(outcome(err), errors.Is(err, errTooManyLogins), time.Since(start)), fmt.Sprint(errNoLogin.Line(), true, 10*time.Second))
		err = <-done
		check(t, "hangs", fmt.Sprint(outcome(err), errors.Is(err, context.DeadlineExceeded), time.Since(start)), fmt.Sprint(errNoLogin.Line(), true, 59*time.Second))
	})
}

// Our own login is on every connection, and what fails there is no word about the mail.
func TestOwnLogin(t *testing.T) {
	const auth = "AUTH PLAIN AGpvZQBzZWNyZXQ="
	f := &fake{ehlo: []string{"AUTH LOGIN PLAIN"}}
	o := one(f.listen(t))
	o.User, o.Password = "joe", "secret"
	tr := open(t, o)
	for range 2 {
		check(t, "outcome", send(t, tr), "250 taken")
	}
	check(t, "the backend heard", strings.HasPrefix(f.said(), "EHLO gateway.test|"+auth+"|MAIL"), true)
	check(t, "logins", f.heard(auth), 1)
	if err := tr.Login(t.Context(), "b", sasl.Account{User: "ann", Password: "x"}); err != nil {
		t.Error(err)
	}
	check(t, "logins of ours", f.heard(auth), 1) // not on the connection of another

	f = &fake{ehlo: []string{"AUTH PLAIN"}, answer: on("AUTH", "535 5.7.8 no")}
	o.Groups = one(f.listen(t)).Groups
	tr = open(t, o)
	check(t, "refused", send(t, tr), "begin: "+errUnreachable.Line())
	check(t, "stats", figures(stats(t, tr)), "open 0 idle 0 busy 0 dialled 1 reused 0 lost 0")

	o.Password = ""
	o.XClient = true
	if err := o.Validate(); err == nil {
		t.Error("a user without a password is no error")
	}
}
