# Helper of the TAP tests: recipes of doc/operations.md. A block with <!-- NNN: recipe, node --> before it is run by the
# test of that number, on the node that it names ("each": on all): in the database app, or in another one named after
# the node.
# "host=n1.example" in it stands for how n1 is reached.
package Recipes;

use strict;
use warnings;
use Exporter 'import';
use File::Basename qw(basename dirname);
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(follow all_followed);

my ($number) = basename($0) =~ /^(\d+)/;
my $text = slurp_file(dirname(__FILE__) . '/../doc/operations.md');
my @blocks;
push @blocks, { recipe => $1, node => $2, database => $3 || 'app', sql => $4 } while $text =~ /^<!-- $number: (\w+), (\w+)(?: (\w+))? -->\n```sql\n(.*?)^```$/msg;

# Runs the blocks of a recipe, in their order, on the nodes given by their names in the document. Between two of them
# the third argument is called, if there is one. Returns what they printed as errors, warnings and notices.
sub follow
{
	my ($recipe, $nodes, $between) = @_;
	my $said = '';

	foreach my $block (grep { $_->{recipe} eq $recipe } @blocks)
	{
		my $sql = $block->{sql} =~ s/host=(\w+)\.example/$nodes->{$1}->connstr()/ger;
		foreach my $name ($block->{node} eq 'each' ? sort keys %$nodes : $block->{node})
		{
			my ($status, undef, $stderr) = $nodes->{$name}->psql($block->{database}, $sql, on_error_stop => 1);

			is($status, 0, "$recipe: the recipe works on $name") or diag($stderr);
			$said .= $stderr;
		}
		$block->{followed} = 1;
		$between->() if $between;
	}
	return $said;
}

# Tests that all recipes have been followed.
sub all_followed
{
	is(join(' ', map { $_->{recipe} } grep { !$_->{followed} } @blocks), '', 'all recipes were followed');
	cmp_ok(scalar(@blocks), '>', 0, 'there are recipes');
	return;
}

1;
