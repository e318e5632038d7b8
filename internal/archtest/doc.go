// Package archtest holds the rules of the house as tests: who may import whom, which library belongs to which package, what
// every file and every page of documentation must be like. It has no code of its own and nothing imports it. A rule that
// stops a change is either broken by that change or wrong; in the second case the rule is changed here, in the same commit,
// with its reason. Start reading in imports_test.go.
package archtest
